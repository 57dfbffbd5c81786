from __future__ import annotations

import pytest

from protocol.errors import LocalProtocolError
from protocol.session.outbox import Outbox
from protocol.session.replay import STREAM_RESERVE, Budget, ReplayCap
from protocol.session.send_admission import BURST_FRAMES, SendAdmission
from protocol.session.stream import End, Stream
from protocol.session.window import ReceiveWindow, SendWindow
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import HEADER_SIZE, MAX_PAYLOAD

MIB = 1024 * 1024


class Bench:
    def __init__(self, *, credit: int = MIB, limit: int = MIB) -> None:
        self.budget = Budget(limit, ReplayCap(100 * MIB))
        self.outbox = Outbox(budget=self.budget, pool=BufferPool())
        self.admission = SendAdmission(self.outbox, credit)
        self.admission.attached = True

    def send(self, state: Stream, count: int) -> bool:
        return not self.admission.queue(state, [bytearray(HEADER_SIZE + MAX_PAYLOAD)], count)

    def send_out(self) -> None:
        while (state := self.outbox.scheduler.next()) is not None:
            self.outbox.replay.add(state.queue.popleft())


def stream(number: int = 1, credit: int = MIB) -> Stream:
    return Stream(number, SendWindow(credit), ReceiveWindow(1))


def test_the_least_of_all_limits_counts() -> None:
    bench = Bench()
    assert bench.admission.allowance(stream(), 1, 1) == MAX_PAYLOAD
    assert bench.admission.allowance(stream(credit=7), 1, 1) == 7
    assert Bench(credit=8).admission.allowance(stream(), 1, 1) == 8
    bench.admission.record_size = 9
    assert bench.admission.record_size == bench.admission.allowance(stream(), 1, 1) == 9


def test_a_burst_is_for_full_records_only() -> None:
    """On a slow link, what is read ahead is a queue that nobody may overtake."""
    bench = Bench()
    assert bench.admission.allowance(stream(), 1, 8) == 8 * MAX_PAYLOAD
    assert bench.admission.allowance(stream(credit=MAX_PAYLOAD + 1), 1, 8) == MAX_PAYLOAD + 1
    bench.admission.record_size = MAX_PAYLOAD - 1
    assert bench.admission.allowance(stream(), 1, 8) == MAX_PAYLOAD - 1


def test_queueing_uses_both_credits() -> None:
    bench, state = Bench(credit=100), stream(credit=60)
    assert not bench.send(state, 50)
    assert (bench.admission.credit.credit, state.credit.credit) == (50, 10)
    with pytest.raises(LocalProtocolError):
        bench.send(state, 11)


@pytest.mark.parametrize("count", [0, -1, MAX_PAYLOAD + 1])
def test_a_frame_has_a_size(count: int) -> None:
    with pytest.raises(LocalProtocolError):
        Bench().send(stream(), count)


@pytest.mark.parametrize("sending", [End.ENDING, End.ENDED, End.DONE])
def test_what_is_finished_takes_nothing_and_waits_for_nothing(sending: End) -> None:
    bench, state = Bench(), stream()
    state.sending = sending
    assert bench.admission.allowance(state, 1, 1) == 0
    bench.admission.unblock(state)
    assert bench.admission.take_ready() == []


def test_two_unsent_records_block_only_while_attached() -> None:
    bench, state = Bench(), stream()
    bench.send(state, 1)
    assert bench.admission.allowance(state, 1, 1)
    bench.send(state, 1)
    assert bench.admission.allowance(state, 1, 1) == 0
    bench.admission.unblock(state)
    assert bench.admission.take_ready() == []
    bench.admission.attached = False
    bench.admission.unblock(state)
    assert bench.admission.take_ready() == [1]
    assert bench.admission.allowance(state, 1, 1)


def test_a_stream_without_credit_is_blocked_until_it_has_some() -> None:
    bench, state = Bench(), stream(credit=0)
    assert bench.admission.allowance(state, 1, 1) == 0
    bench.admission.unblock(state)
    assert bench.admission.take_ready() == []
    state.credit.grant(1)
    bench.admission.unblock(state)
    bench.admission.unblock(state)
    assert bench.admission.take_ready() == [1]


def test_starved_readers_wait_for_session_credit_in_order() -> None:
    bench = Bench(credit=0)
    for number in (5, 1, 3):
        assert bench.admission.allowance(stream(number), 3, 1) == 0
    assert bench.admission.take_ready() == []
    bench.admission.credit.grant(1)
    assert bench.admission.take_ready() == [5, 1, 3]
    assert bench.admission.take_ready() == []


BURST = BURST_FRAMES * MAX_PAYLOAD


def starve(bench: Bench, numbers: range) -> list[Stream]:
    """Readers that ask while bulk of others holds all it may."""
    bench.budget.take(bench.budget.shared)
    states = [stream(number) for number in numbers]
    for state in states:
        state.held = STREAM_RESERVE
        assert bench.admission.allowance(state, len(states), 1) == 0
    return states


def test_starved_readers_are_called_as_the_room_allows_while_acks_will_come() -> None:
    bench = Bench(credit=100 * MIB, limit=16 * MIB)
    starve(bench, range(1, 20, 2))
    bench.budget.give(3 * BURST)
    assert bench.admission.take_ready() == [1, 3, 5]
    assert bench.admission.take_ready() == [], "those called have not asked yet"
    # Those called have nothing to read; once no ack is to come, nobody else would call the rest.
    bench.budget.give(bench.budget.held)
    assert bench.admission.take_ready() == [7, 9, 11, 13, 15, 17, 19]


def test_on_a_slow_link_a_turn_is_one_record() -> None:
    bench = Bench(credit=100 * MIB, limit=16 * MIB)
    starve(bench, range(1, 20, 2))
    bench.admission.record_size = MAX_PAYLOAD - 1
    bench.budget.give(3 * (MAX_PAYLOAD - 1))
    assert bench.admission.take_ready() == [1, 3, 5]


def test_little_credit_of_the_session_is_little_room() -> None:
    bench = Bench(credit=0, limit=16 * MIB)
    for number in range(1, 20, 2):
        assert bench.admission.allowance(stream(number), 10, 1) == 0
    bench.budget.take(1)
    bench.admission.credit.grant(2 * BURST - 1)
    assert bench.admission.take_ready() == [1]


def test_without_room_they_are_called_one_at_a_time_in_turn() -> None:
    """The one in front may have its reserve back, though bulk has all the rest."""
    bench = Bench(credit=100 * MIB, limit=16 * MIB)
    first, second, third = starve(bench, range(1, 7, 2))
    second.held -= 1000
    assert bench.admission.take_ready() == [first.id]
    assert bench.admission.take_ready() == []
    assert bench.admission.allowance(first, 3, 1) == 0
    assert bench.admission.take_ready() == [second.id]
    assert 0 < bench.admission.allowance(second, 3, 1) < 1000
    assert bench.admission.take_ready() == [third.id]


def test_what_somebody_was_called_for_is_nobody_elses() -> None:
    bench = Bench(credit=100 * MIB, limit=16 * MIB)
    (starved,) = starve(bench, range(1, 2))
    bulk, typist = stream(3), stream(5)
    bulk.held = STREAM_RESERVE
    bench.budget.give(BURST)
    for _ in range(2):
        assert bench.admission.allowance(bulk, 3, 8) == 0
        assert 0 < bench.admission.allowance(typist, 3, 8) <= STREAM_RESERVE
    assert bench.admission.take_ready() == [starved.id]
    assert bench.admission.allowance(bulk, 3, 8) == 0
    assert bench.admission.allowance(starved, 3, 8) > STREAM_RESERVE
    assert bench.admission.take_ready() == [bulk.id]
    assert bench.admission.allowance(bulk, 3, 8) > STREAM_RESERVE
    assert bench.admission.allowance(typist, 3, 8) > STREAM_RESERVE, "nobody waits any more"


@pytest.mark.parametrize("end", ["abandon", "closed"])
def test_who_is_called_and_gone_keeps_nothing_from_the_others(end: str) -> None:
    bench = Bench(credit=100 * MIB, limit=16 * MIB)
    first, second = starve(bench, range(1, 4, 2))
    assert bench.admission.take_ready() == [first.id]
    getattr(bench.admission, end)(first)
    assert bench.admission.take_ready() == [second.id]


def test_a_closed_stream_waits_no_more() -> None:
    bench, state = Bench(credit=0), stream()
    bench.admission.allowance(state, 1, 1)
    bench.admission.closed(state)
    bench.admission.closed(state)
    bench.admission.credit.grant(1)
    assert bench.admission.take_ready() == []


def test_abandoning_takes_back_credit_for_what_was_never_sent() -> None:
    bench, state = Bench(credit=100), stream()
    bench.send(state, 30)
    bench.send_out()
    bench.send(state, 40)
    bench.admission.abandon(state)
    assert bench.admission.credit.credit == 70
    assert state.sending is End.DONE
    assert not state.queue
