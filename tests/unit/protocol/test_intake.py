from __future__ import annotations

import pytest

from protocol.buffers import BufferPool
from protocol.errors import LocalProtocolError
from protocol.frame import HEADER_SIZE, MAX_PAYLOAD
from protocol.intake import Intake
from protocol.outbox import Outbox
from protocol.replay import Budget, ReplayCap
from protocol.stream import End, Stream
from protocol.window import ReceiveWindow, SendWindow

MIB = 1024 * 1024


class Bench:
    def __init__(self, *, credit: int = MIB, limit: int = MIB) -> None:
        self.budget = Budget(limit, ReplayCap(100 * MIB))
        self.outbox = Outbox(budget=self.budget, pool=BufferPool())
        self.intake = Intake(self.outbox, credit)
        self.intake.attached = True

    def send(self, state: Stream, count: int) -> bool:
        return not self.intake.queue(state, [bytearray(HEADER_SIZE + MAX_PAYLOAD)], count)

    def send_out(self) -> None:
        while (state := self.outbox.scheduler.next()) is not None:
            self.outbox.replay.add(state.queue.popleft())


def stream(number: int = 1, credit: int = MIB) -> Stream:
    return Stream(number, SendWindow(credit), ReceiveWindow(1))


def test_the_least_of_all_limits_counts() -> None:
    bench = Bench()
    assert bench.intake.allowance(stream(), 1, 1) == MAX_PAYLOAD
    assert bench.intake.allowance(stream(credit=7), 1, 1) == 7
    assert Bench(credit=8).intake.allowance(stream(), 1, 1) == 8
    bench.intake.record_size = 9
    assert bench.intake.record_size == bench.intake.allowance(stream(), 1, 1) == 9


def test_a_burst_is_for_full_records_only() -> None:
    """On a slow link, what is read ahead is a queue that nobody may overtake."""
    bench = Bench()
    assert bench.intake.allowance(stream(), 1, 8) == 8 * MAX_PAYLOAD
    assert bench.intake.allowance(stream(credit=MAX_PAYLOAD + 1), 1, 8) == MAX_PAYLOAD + 1
    bench.intake.record_size = MAX_PAYLOAD - 1
    assert bench.intake.allowance(stream(), 1, 8) == MAX_PAYLOAD - 1


def test_queueing_uses_both_credits() -> None:
    bench, state = Bench(credit=100), stream(credit=60)
    assert not bench.send(state, 50)
    assert (bench.intake.credit.credit, state.credit.credit) == (50, 10)
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
    assert bench.intake.allowance(state, 1, 1) == 0
    bench.intake.unblock(state)
    assert bench.intake.take_ready() == []


def test_two_unsent_records_block_only_while_attached() -> None:
    bench, state = Bench(), stream()
    bench.send(state, 1)
    assert bench.intake.allowance(state, 1, 1)
    bench.send(state, 1)
    assert bench.intake.allowance(state, 1, 1) == 0
    bench.intake.unblock(state)
    assert bench.intake.take_ready() == []
    bench.intake.attached = False
    bench.intake.unblock(state)
    assert bench.intake.take_ready() == [1]
    assert bench.intake.allowance(state, 1, 1)


def test_a_stream_without_credit_is_blocked_until_it_has_some() -> None:
    bench, state = Bench(), stream(credit=0)
    assert bench.intake.allowance(state, 1, 1) == 0
    bench.intake.unblock(state)
    assert bench.intake.take_ready() == []
    state.credit.grant(1)
    bench.intake.unblock(state)
    bench.intake.unblock(state)
    assert bench.intake.take_ready() == [1]


def test_starved_readers_wait_for_session_credit_in_order() -> None:
    bench = Bench(credit=0)
    for number in (5, 1, 3):
        assert bench.intake.allowance(stream(number), 3, 1) == 0
    assert bench.intake.take_ready() == []
    bench.intake.credit.grant(1)
    assert bench.intake.take_ready() == [5, 1, 3]
    assert bench.intake.take_ready() == []


def test_starved_readers_are_woken_as_the_room_allows_while_acks_will_come() -> None:
    bench = Bench()
    bench.budget.take(MIB - 2 * MAX_PAYLOAD)
    for number in range(1, 20, 2):
        state = stream(number)
        state.held = MIB
        assert bench.intake.allowance(state, 10, 1) == 0
    assert bench.intake.take_ready() == [1, 3, 5]
    # Those woken have nothing to read; once no ack is to come, nobody else would wake the rest.
    bench.budget.give(MIB - 2 * MAX_PAYLOAD)
    assert bench.intake.take_ready() == [7, 9, 11, 13, 15, 17, 19]


def test_a_closed_stream_waits_no_more() -> None:
    bench, state = Bench(credit=0), stream()
    bench.intake.allowance(state, 1, 1)
    bench.intake.closed(state)
    bench.intake.closed(state)
    bench.intake.credit.grant(1)
    assert bench.intake.take_ready() == []


def test_abandoning_takes_back_credit_for_what_was_never_sent() -> None:
    bench, state = Bench(credit=100), stream()
    bench.send(state, 30)
    bench.send_out()
    bench.send(state, 40)
    bench.intake.abandon(state)
    assert bench.intake.credit.credit == 70
    assert state.sending is End.DONE
    assert not state.queue
