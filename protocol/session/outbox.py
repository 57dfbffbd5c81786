"""What one session has to send: control frames, the streams' queues, and replay, in one budget.

A frame passes through here once: queued, numbered when it goes out, kept until acked, released.

    queue(stream) ──scheduler──┐
    queue_control ─────────────┴──▶ replay ──acked──▶ released (memory, pooled buffer)

Data is admitted by `room` before it is read from its socket, so nothing is ever dropped for lack of
memory. All other frames are small and few by construction; they are counted apart.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from protocol.session.replay import FRAME_OVERHEAD, Budget, Replay
from protocol.session.scheduler import Scheduler
from protocol.session.stream import Sent, Stream
from protocol.wire import frame as wire
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import HEADER_SIZE, MAX_PAYLOAD, FrameType
from protocol.wire.noise import Buffer

# Payloads up to this are copied out, so that a keystroke does not hold a 64 KiB buffer until acked.
COPY_BELOW: Final = 16 * 1024
_WHOLE_FRAME: Final = FRAME_OVERHEAD + HEADER_SIZE + MAX_PAYLOAD
# All but DATA has room outside the replay budget. 8 MiB are 30,000 frames: more than 4,096 streams
# can need, and 200 visitors a second over a link stalled for a minute.
CONTROL_HEADROOM: Final = 8 * 1024 * 1024


class Outbox:
    def __init__(self, *, budget: Budget, pool: BufferPool) -> None:
        self.replay = Replay()
        self.control_held = 0
        self.budget = budget
        self._pool = pool
        self.control_queue: deque[Sent] = deque()
        self.scheduler = Scheduler(MAX_PAYLOAD)

    @property
    def waiting_for_acks(self) -> bool:
        """Whether anything is queued or unacked: what is, an ack will come for."""
        return bool(self.budget.held or self.control_held)

    def set_quantum(self, quantum: int) -> None:
        """Bytes that a stream may send before it is the next one's turn."""
        self.scheduler.quantum = quantum

    def room(self, state: Stream, streams: int, frames: int, *, reserve_only: bool = False) -> int:
        """Payload bytes that `state` may queue now in up to `frames`, by memory alone."""
        room = self.budget.room(state.held, streams, reserve_only=reserve_only)
        if whole := min(frames, room // _WHOLE_FRAME):
            return whole * MAX_PAYLOAD
        # Not enough for a pooled buffer may be enough for a copy of its own size.
        return min(room - FRAME_OVERHEAD - HEADER_SIZE, COPY_BELOW)

    def queue_data(self, state: Stream, buffers: list[bytearray], count: int) -> list[bytearray]:
        """Queue `count` bytes, at offset HEADER_SIZE of each of `buffers` up to its end.

        Returns the buffers that are not kept.
        """
        queue, spare, cost = state.queue, list[bytearray](), 0
        frame: Buffer
        header = wire.data_header(state.id)
        for buffer in buffers:
            if count > COPY_BELOW:
                buffer[:HEADER_SIZE] = header
                whole = count >= MAX_PAYLOAD
                frame = buffer if whole else memoryview(buffer)[: HEADER_SIZE + count]
                sent = Sent(frame, _WHOLE_FRAME, state, buffer)
            else:
                spare.append(buffer)
                if count <= 0:
                    continue
                frame = header + buffer[HEADER_SIZE : HEADER_SIZE + count]
                sent = Sent(frame, FRAME_OVERHEAD + len(frame), state, None)
            queue.append(sent)
            cost += sent.cost
            count -= MAX_PAYLOAD
        self.budget.take(cost)
        state.held += cost
        self.scheduler.wake(state)
        return spare

    def queue_end(self, state: Stream, frame: bytes) -> None:
        """Queue a FIN, or a RESET that must not overtake it, behind the stream's data."""
        self._enqueue(state, self.control(frame, state))

    def queue_control(self, frame: bytes) -> None:
        self.control_queue.append(self.control(frame))

    def control(self, frame: bytes, state: Stream | None = None) -> Sent:
        """A frame that counts apart from the budget, to be queued or sent at once."""
        cost = FRAME_OVERHEAD + len(frame)
        self.control_held += cost
        return Sent(frame, cost, state, None)

    def drop_queue(self, state: Stream) -> int:
        """Forget what waits in a stream's queue; returns the payload bytes never sent."""
        payload = 0
        for sent in state.queue:
            if sent.frame[0] == FrameType.DATA:
                payload += len(sent.frame) - HEADER_SIZE
            self._release(sent)
        state.queue.clear()
        return payload

    def ack(self, received: int) -> list[Stream]:
        """The peer has `received` frames; returns the streams whose FIN it has now."""
        return self._release_all(self.replay.ack(received))

    def resume(self, received: int) -> list[Stream]:
        """A new link's peer has `received` frames (raises SessionLost); else as `ack`."""
        return self._release_all(self.replay.resume(received))

    def discard(self) -> None:
        self._release_all(self.replay.discard_all())
        while self.control_queue:
            self._release(self.control_queue.popleft())

    def _enqueue(self, state: Stream, sent: Sent) -> None:
        state.queue.append(sent)
        self.scheduler.wake(state)

    def _release_all(self, dropped: list[Sent]) -> list[Stream]:
        ended = []
        for sent in dropped:
            self._release(sent)
            if sent.stream is not None and sent.frame[0] == FrameType.FIN:
                ended.append(sent.stream)
        return ended

    def _release(self, sent: Sent) -> None:
        if sent.stream is None or sent.frame[0] != FrameType.DATA:
            self.control_held -= sent.cost
            return
        sent.stream.held -= sent.cost
        self.budget.give(sent.cost)
        if sent.buffer is not None:
            self._pool.give(sent.buffer)
