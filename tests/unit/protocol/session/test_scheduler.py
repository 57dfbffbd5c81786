from __future__ import annotations

import pytest

from protocol.session.scheduler import Scheduler
from protocol.session.stream import Sent, Stream
from protocol.session.window import ReceiveWindow, SendWindow

QUANTUM = 1000


def stream(number: int) -> Stream:
    return Stream(number, SendWindow(0), ReceiveWindow(0))


def queue(scheduler: Scheduler, state: Stream, *sizes: int) -> None:
    for size in sizes:
        state.queue.append(Sent(bytes(size), size, state, None))
        scheduler.wake(state)


def take(scheduler: Scheduler) -> int | None:
    """The id of the stream that sends a frame now."""
    state = scheduler.next()
    if state is None:
        return None
    state.queue.popleft()
    return state.id


def drain(scheduler: Scheduler) -> list[int]:
    order = []
    while (number := take(scheduler)) is not None:
        order.append(number)
    return order


def standing(scheduler: Scheduler, *numbers: int, frames: int = 50) -> list[Stream]:
    """Streams with a backlog that are past their first quantum."""
    streams = [stream(number) for number in numbers]
    for state in streams:
        queue(scheduler, state, *[QUANTUM] * (frames + 1))
    for state in streams:
        assert take(scheduler) == state.id
    return streams


def test_nothing_queued_nothing_sent() -> None:
    assert Scheduler(QUANTUM).next() is None


def test_a_stream_that_wakes_goes_before_all_bulk() -> None:
    scheduler = Scheduler(QUANTUM)
    standing(scheduler, 1, 3, 5)
    keystroke = stream(7)
    queue(scheduler, keystroke, 70)
    assert take(scheduler) == 7


def test_sparse_streams_go_in_the_order_they_woke() -> None:
    scheduler = Scheduler(QUANTUM)
    standing(scheduler, 1)
    for number in (9, 3, 7):
        queue(scheduler, stream(number), 70)
    assert [take(scheduler) for _ in range(4)] == [9, 3, 7, 1]


def test_a_sparse_stream_has_one_quantum_then_it_is_bulk() -> None:
    scheduler = Scheduler(QUANTUM)
    standing(scheduler, 1)
    greedy = stream(3)
    queue(scheduler, greedy, *[QUANTUM // 2] * 6)
    assert [take(scheduler) for _ in range(2)] == [3, 3]
    assert take(scheduler) == 1
    # From now on quantum by quantum.
    assert [take(scheduler) for _ in range(6)] == [3, 3, 1, 3, 3, 1]


def test_a_standing_backlog_cannot_stay_sparse_by_a_low_rate() -> None:
    # It adds a small frame whenever one of its own went out: its queue is never seen empty.
    scheduler = Scheduler(QUANTUM)
    bulk = standing(scheduler, 1, frames=400)[0]
    slow = stream(3)
    queue(scheduler, slow, 100, 100)
    order = []
    for _ in range(200):
        number = take(scheduler)
        order.append(number)
        if number == 3:
            queue(scheduler, slow, 100)
    assert order[:10] == [3] * 10, "the first quantum"
    assert bulk.id in order[10:12]
    # Ten frames of 100 bytes to one of 1,000: equal shares in bytes.
    later = order[22:]
    assert abs(later.count(3) * 100 - later.count(1) * QUANTUM) <= QUANTUM


def test_a_stream_that_empties_passes_bulk_before_it_is_sparse_again() -> None:
    scheduler = Scheduler(QUANTUM)
    standing(scheduler, 1)
    tricky = stream(3)
    queue(scheduler, tricky, QUANTUM // 2)
    assert take(scheduler) == 3
    assert take(scheduler) == 1, "3 was seen empty and waits in bulk now"
    queue(scheduler, tricky, 10)
    assert tricky.scheduled
    order = [take(scheduler) for _ in range(2)]
    assert sorted(order) == [1, 3], "a turn like any other"


def test_sparse_again_after_its_queue_was_empty_at_a_turn_in_bulk() -> None:
    scheduler = Scheduler(QUANTUM)
    standing(scheduler, 1)
    keystroke = stream(3)
    queue(scheduler, keystroke, 10)
    assert take(scheduler) == 3
    for _ in range(3):
        assert take(scheduler) == 1
    assert not keystroke.scheduled
    queue(scheduler, keystroke, 10)
    assert take(scheduler) == 3


def test_waking_twice_changes_nothing() -> None:
    scheduler = Scheduler(QUANTUM)
    state = stream(1)
    queue(scheduler, state, 10, 10)
    scheduler.wake(state)
    assert drain(scheduler) == [1, 1]
    assert scheduler.next() is None
    assert not state.scheduled


@pytest.mark.parametrize("sizes", [(1000, 1000), (1000, 100), (333, 700), (65, 999), (2500, 10)])
def test_bulk_is_fair_within_a_quantum_and_a_frame(sizes: tuple[int, int]) -> None:
    scheduler = Scheduler(QUANTUM)
    states = [stream(1), stream(3)]
    for state, size in zip(states, sizes, strict=True):
        queue(scheduler, state, *[size] * (60_000 // size))
    sent = {1: 0, 3: 0}
    # While both have a backlog.
    while min(sent.values()) < 40_000:
        number = take(scheduler)
        assert number is not None
        sent[number] += sizes[0] if number == 1 else sizes[1]
        assert abs(sent[1] - sent[3]) <= 2 * QUANTUM + max(sizes)


def test_nobody_starves_beside_frames_larger_than_the_quantum() -> None:
    scheduler = Scheduler(QUANTUM)
    large, small = stream(1), stream(3)
    queue(scheduler, large, *[10 * QUANTUM] * 5)
    queue(scheduler, small, *[QUANTUM] * 30)
    order = drain(scheduler)
    assert order.count(1) == 5
    assert order.count(3) == 30
    # The large one pays its debt turn by turn before its next frame.
    assert order[:2] == [1, 3]
    second = order.index(1, 1)
    assert 9 <= order[:second].count(3) <= 11


def test_bulk_goes_on_beside_a_stream_that_keeps_waking() -> None:
    scheduler = Scheduler(QUANTUM)
    standing(scheduler, 1, frames=100)
    waking = stream(3)
    order = []
    for _ in range(60):
        queue(scheduler, waking, QUANTUM)
        order.append(take(scheduler))
    assert order.count(1) >= 20


def test_a_smaller_quantum_makes_shorter_turns() -> None:
    scheduler = Scheduler(QUANTUM)
    one, two = stream(1), stream(3)
    queue(scheduler, one, *[100] * 40)
    queue(scheduler, two, *[100] * 40)
    scheduler.quantum = 100
    order = drain(scheduler)
    runs, last = [], 0
    for place in range(1, len(order) + 1):
        if place == len(order) or order[place] != order[last]:
            runs.append(place - last)
            last = place
    # The first turn of each was begun with the large quantum.
    assert runs[:2] == [10, 10]
    assert max(runs[2:]) == 1


def test_a_stream_whose_queue_was_dropped_leaves_without_a_frame() -> None:
    scheduler = Scheduler(QUANTUM)
    gone, other = stream(1), stream(3)
    queue(scheduler, gone, 10, 10)
    queue(scheduler, other, 10)
    gone.queue.clear()
    assert drain(scheduler) == [3]
    assert not gone.scheduled
