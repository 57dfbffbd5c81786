"""The outbox and the pool its buffers come from."""

from __future__ import annotations

from protocol.session.outbox import COPY_BELOW, Outbox
from protocol.session.replay import FRAME_OVERHEAD, STREAM_RESERVE, Budget, ReplayCap
from protocol.session.stream import Stream
from protocol.session.window import ReceiveWindow, SendWindow
from protocol.wire.buffers import SPARE_FRAMES, BufferPool
from protocol.wire.frame import HEADER_SIZE, MAX_PAYLOAD

MIB = 1024 * 1024
FIN = bytes.fromhex("08 00000001")
RESET = bytes.fromhex("09 00000001 01")


class Bench:
    def __init__(self, limit: int = 4 * MIB) -> None:
        self.pool = BufferPool()
        self.budget = Budget(limit, ReplayCap(512 * MIB))
        self.outbox = Outbox(budget=self.budget, pool=self.pool)

    def data(self, state: Stream, count: int) -> bool:
        buffer = self.pool.take()
        buffer[HEADER_SIZE : HEADER_SIZE + count] = b"x" * count
        kept = not self.outbox.queue_data(state, [buffer], count)
        if not kept:
            self.pool.give(buffer)
        return kept

    def send_all(self) -> list[bytes]:
        sent = list(self.outbox.control_queue)
        self.outbox.control_queue.clear()
        while (state := self.outbox.scheduler.next()) is not None:
            sent.append(state.queue.popleft())
        for frame in sent:
            self.outbox.replay.add(frame)
        return [bytes(frame.frame) for frame in sent]


def stream(number: int = 1) -> Stream:
    return Stream(number, SendWindow(10**6), ReceiveWindow(10**6))


def test_small_payloads_are_copied_and_count_what_the_copy_holds() -> None:
    bench, state = Bench(), stream()
    assert not bench.data(state, COPY_BELOW)
    assert state.held == bench.budget.held == FRAME_OVERHEAD + HEADER_SIZE + COPY_BELOW


def test_larger_payloads_keep_the_buffer_and_count_all_of_it() -> None:
    bench, state = Bench(), stream()
    assert bench.data(state, COPY_BELOW + 1)
    assert state.held == bench.budget.held == FRAME_OVERHEAD + HEADER_SIZE + MAX_PAYLOAD


def test_data_goes_out_with_its_header() -> None:
    bench, state = Bench(), stream(7)
    bench.data(state, 3)
    assert bench.send_all() == [bytes.fromhex("06 00000007") + b"xxx"]


def test_room_is_for_a_pooled_buffer_or_for_a_copy() -> None:
    bench, state = Bench(limit=8 * 1024 * 1024), stream()
    whole = FRAME_OVERHEAD + HEADER_SIZE + MAX_PAYLOAD
    bulk = 7 * 1024 * 1024
    bench.budget.held = bulk - whole
    state.held = STREAM_RESERVE
    assert bench.outbox.room(state, 1, 1) == MAX_PAYLOAD
    bench.budget.held += 1
    assert bench.outbox.room(state, 1, 1) == COPY_BELOW
    bench.budget.held = bulk - FRAME_OVERHEAD - HEADER_SIZE - 1
    assert bench.outbox.room(state, 1, 1) == 1
    bench.budget.held += 1
    assert bench.outbox.room(state, 1, 1) <= 0


def test_of_a_burst_the_last_may_be_a_copy_and_what_is_not_needed_comes_back() -> None:
    bench, state = Bench(), stream(7)
    buffers = [bytearray(HEADER_SIZE + MAX_PAYLOAD) for _ in range(4)]
    for number, buffer in enumerate(buffers):
        buffer[HEADER_SIZE:] = bytes([number]) * MAX_PAYLOAD
    assert bench.outbox.queue_data(state, buffers, 2 * MAX_PAYLOAD + 3) == buffers[2:]
    whole = FRAME_OVERHEAD + HEADER_SIZE + MAX_PAYLOAD
    assert state.held == bench.budget.held == 2 * whole + FRAME_OVERHEAD + HEADER_SIZE + 3
    header = bytes.fromhex("06 00000007")
    assert bench.send_all() == [
        header + bytes(MAX_PAYLOAD),
        header + b"\1" * MAX_PAYLOAD,
        header + b"\2\2\2",
    ]
    bench.outbox.ack(3)
    assert state.held == bench.budget.held == 0
    assert [bench.pool.take(), bench.pool.take()] == [buffers[1], buffers[0]]


def test_a_burst_gets_as_many_whole_frames_as_fit() -> None:
    bench, state = Bench(limit=8 * MIB), stream()
    whole = FRAME_OVERHEAD + HEADER_SIZE + MAX_PAYLOAD
    state.held = STREAM_RESERVE
    assert bench.outbox.room(state, 1, 8) == 8 * MAX_PAYLOAD
    bench.budget.held = 7 * MIB - 3 * whole
    assert bench.outbox.room(state, 1, 8) == 3 * MAX_PAYLOAD
    bench.budget.held += 1
    assert bench.outbox.room(state, 1, 8) == 2 * MAX_PAYLOAD


def test_a_keystroke_has_room_beside_bulk() -> None:
    bench, state = Bench(), stream()
    bench.budget.held = 4 * MIB * 7 // 8
    assert bench.outbox.room(state, 2, 1) == STREAM_RESERVE - FRAME_OVERHEAD - HEADER_SIZE


def test_an_ack_gives_memory_and_buffer_back() -> None:
    bench, state = Bench(), stream()
    bench.data(state, MAX_PAYLOAD)
    bench.data(state, 5)
    bench.send_all()
    before = len(bench.pool._free)
    assert bench.outbox.ack(1) == []
    assert len(bench.pool._free) == before + 1
    assert state.held == bench.budget.held == FRAME_OVERHEAD + HEADER_SIZE + 5
    bench.outbox.ack(2)
    assert state.held == bench.budget.held == 0


def test_all_but_data_counts_apart_from_the_budget() -> None:
    bench, state = Bench(), stream()
    bench.outbox.queue_control(bytes(20))
    bench.outbox.queue_end(state, FIN)
    bench.outbox.queue_end(state, RESET)
    assert bench.budget.held == state.held == 0
    assert bench.outbox.control_held == 3 * FRAME_OVERHEAD + 20 + len(FIN) + len(RESET)
    assert bench.send_all() == [bytes(20), FIN, RESET]
    assert bench.outbox.ack(1) == []
    assert bench.outbox.ack(2) == [state], "the peer has its FIN"
    assert bench.outbox.ack(3) == []
    assert bench.outbox.control_held == 0


def test_control_frames_go_in_their_order() -> None:
    bench = Bench()
    bench.outbox.queue_control(b"\x01....")
    bench.outbox.queue_control(b"\x02....")
    assert bench.send_all() == [b"\x01....", b"\x02...."]


def test_dropping_a_queue_tells_the_payload_that_was_never_sent() -> None:
    bench, state = Bench(), stream()
    bench.data(state, 100)
    bench.send_all()
    bench.data(state, 200)
    bench.data(state, MAX_PAYLOAD)
    bench.outbox.queue_end(state, FIN)
    assert bench.outbox.drop_queue(state) == 200 + MAX_PAYLOAD
    assert bench.send_all() == []
    assert bench.outbox.drop_queue(state) == 0
    bench.outbox.ack(1)
    assert state.held == bench.budget.held == bench.outbox.control_held == 0


def test_a_resume_releases_and_tells_fins_like_an_ack() -> None:
    bench, state = Bench(), stream()
    bench.data(state, 100)
    bench.outbox.queue_end(state, FIN)
    bench.send_all()
    assert bench.outbox.resume(2) == [state]
    assert not bench.outbox.waiting_for_acks


def test_discarding_gives_all_back() -> None:
    bench, state = Bench(), stream()
    bench.data(state, MAX_PAYLOAD)
    bench.outbox.queue_control(bytes(9))
    bench.send_all()
    bench.outbox.queue_control(bytes(9))
    assert bench.outbox.waiting_for_acks
    bench.outbox.discard()
    assert bench.budget.held == bench.outbox.control_held == bench.budget.cap.held == 0
    assert not bench.outbox.waiting_for_acks


def test_the_quantum_is_the_schedulers() -> None:
    bench = Bench()
    bench.outbox.set_quantum(4096)
    assert bench.outbox.scheduler.quantum == 4096


def test_a_pool_makes_buffers_and_takes_them_again() -> None:
    pool = BufferPool(10)
    first = pool.take()
    assert len(first) == 10
    pool.give(first)
    assert pool.take() is first
    assert pool.take() is not first


def test_a_pool_keeps_no_more_spares_than_it_should() -> None:
    pool = BufferPool(10, spare=2)
    for _ in range(3):
        pool.give(bytearray(10))
    assert len(pool._free) == 2
    assert SPARE_FRAMES * (HEADER_SIZE + MAX_PAYLOAD) <= 4 * MIB


def test_a_pools_buffer_holds_a_whole_frame() -> None:
    assert len(BufferPool().take()) == HEADER_SIZE + MAX_PAYLOAD
