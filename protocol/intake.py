"""What local sockets may add: a reader asks for its allowance, reads that much, and queues it.

    allowance 0, because   the stream has no credit, or two records unsent   → `blocked`
                           all together have no memory or session credit     → starved, in order
    either way the stream comes out of `take_ready` when asking again may help

At a limit reading stops: back-pressure, nothing dropped.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from protocol.errors import LocalProtocolError
from protocol.frame import MAX_PAYLOAD
from protocol.outbox import Outbox
from protocol.stream import End, Stream
from protocol.window import SendWindow

# While attached a socket is read only if fewer frames than this of its stream wait: enough to keep
# the link busy, little enough that the scheduler decides what goes next and not a queue.
UNSENT_FRAMES: Final = 2
# Full frames that one read of a socket may fill: as many as one send to the link takes. Where
# records are small the link is slow, and reading ahead would only be a queue.
BURST_FRAMES: Final = 8


class Intake:
    __slots__ = ("_outbox", "_ready", "_record_size", "_starved", "attached", "credit")

    def __init__(self, outbox: Outbox, session_credit: int) -> None:
        self.credit = SendWindow(session_credit)  # over all streams
        self.attached = False
        self._outbox = outbox
        self._record_size = MAX_PAYLOAD
        self._starved: dict[int, None] = {}
        self._ready: list[int] = []

    @property
    def record_size(self) -> int:
        return self._record_size

    @record_size.setter
    def record_size(self, size: int) -> None:
        self._record_size = size
        # Else a stream would send many records before the next one's turn.
        self._outbox.set_quantum(size)

    def allowance(self, state: Stream, streams: int, frames: int) -> int:
        """Bytes that `state`, one of `streams`, may queue now in up to `frames` frames."""
        if state.sending is not End.OPEN:
            return 0
        if not self._has_turn(state):
            state.blocked = True
            return 0
        if self._record_size < MAX_PAYLOAD:
            frames = 1
        shared = min(self._outbox.room(state, streams, frames), self.credit.credit)
        if shared <= 0:
            self._starved[state.id] = None
            return 0
        return min(shared, state.credit.credit, self._record_size * frames)

    def queue(self, state: Stream, buffers: list[bytearray], count: int) -> list[bytearray]:
        """Queue `count` bytes as `Outbox.queue_data` does."""
        if not 0 < count <= MAX_PAYLOAD * len(buffers):
            raise LocalProtocolError(f"{count} bytes in {len(buffers)} frames")
        state.credit.use(count)
        self.credit.use(count)
        return self._outbox.queue_data(state, buffers, count)

    def abandon(self, state: Stream) -> None:
        """Drop what was not sent yet; there will be no more."""
        self.credit.refund(self._outbox.drop_queue(state))
        state.sending = End.DONE

    def closed(self, state: Stream) -> None:
        self._starved.pop(state.id, None)

    def unblock(self, state: Stream) -> None:
        """Something about `state` itself changed for the better."""
        if state.blocked and self._has_turn(state):
            state.blocked = False
            self._ready.append(state.id)

    def take_ready(self) -> list[int]:
        if self._starved and self.credit.credit:
            self._ready += self._take_starved()
        ready, self._ready = self._ready, []
        return ready

    def _take_starved(self) -> list[int]:
        """As many as the room may serve; those that lose the race queue again.

        What was acked last may serve fewer than wait, and those have nothing to read. So when no
        further ack is to come that would wake the rest, all are woken.
        """
        count = len(self._starved)
        if self._outbox.waiting_for_acks:
            count = min(count, self._outbox.budget.left // self._record_size + 1)
        woken = list(islice(self._starved, count))
        for stream in woken:
            del self._starved[stream]
        return woken

    def _has_turn(self, state: Stream) -> bool:
        """Whether the stream itself lets its socket be read."""
        if not state.credit.credit:
            return False
        return not self.attached or len(state.queue) < UNSENT_FRAMES
