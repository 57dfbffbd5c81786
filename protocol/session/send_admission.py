"""What local sockets may add: a reader asks for its allowance, reads that much, and queues it.

    allowance 0, because   the stream has no credit, or two records unsent   → `blocked`
                           all together have no memory or session credit     → starved, in order
    either way the stream comes out of `take_ready` when asking again may help

Who starves is called up in turn, and until it has asked, what it was called for is nobody else's:
else the streams that are just being read would take it all, and of a thousand a third get nothing.
Only a stream's own reserve is its own at any time, so a keystroke passes all who wait.

At a limit reading stops: back-pressure, nothing dropped.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from protocol.errors import LocalProtocolError
from protocol.session.outbox import Outbox
from protocol.session.stream import End, Stream
from protocol.session.window import SendWindow
from protocol.wire.frame import MAX_PAYLOAD

# While attached a socket is read only if fewer frames than this of its stream wait: enough to keep
# the link busy, little enough that the scheduler decides what goes next and not a queue.
UNSENT_FRAMES: Final = 2
# Full frames that one read of a socket may fill: as many as one send to the link takes. Where
# records are small the link is slow, and reading ahead would only be a queue.
BURST_FRAMES: Final = 8


class SendAdmission:
    __slots__ = ("_called", "_outbox", "_ready", "_record_size", "_starved", "attached", "credit")

    def __init__(self, outbox: Outbox, session_credit: int) -> None:
        self.credit = SendWindow(session_credit)  # over all streams
        self.attached = False
        self._outbox = outbox
        self._record_size = MAX_PAYLOAD
        self._starved: dict[int, None] = {}  # longest first
        self._called: set[int] = set()  # starved until just now, and yet to ask
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
        called = state.id in self._called
        self._called.discard(state.id)
        if state.sending is not End.OPEN:
            return 0
        if not self._has_turn(state):
            state.blocked = True
            return 0
        if self._record_size < MAX_PAYLOAD:
            frames = 1
        others_first = not called and bool(self._starved or self._called)
        room = self._outbox.room(state, streams, frames, reserve_only=others_first)
        room = min(room, self.credit.credit)
        if room <= 0:
            self._starved[state.id] = None
            return 0
        return min(room, state.credit.credit, self._record_size * frames)

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
        self._waits_no_more(state)

    def closed(self, state: Stream) -> None:
        self._waits_no_more(state)

    def _waits_no_more(self, state: Stream) -> None:
        self._starved.pop(state.id, None)
        self._called.discard(state.id)

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
        """Call up as many as there is room for.

        Those who were called and have nothing to read use no room, and no ack will come for it:
        once none is to come at all, everybody is called.
        """
        count = len(self._starved)
        if self._outbox.waiting_for_acks:
            # Each may fill a burst. One at a time even where there is no room: it may have its
            # own reserve back.
            frames = BURST_FRAMES if self._record_size == MAX_PAYLOAD else 1
            room = min(self._outbox.budget.shared, self.credit.credit)
            count = room // (self._record_size * frames) - len(self._called)
            if not self._called:
                count = max(count, 1)
        woken = list(islice(self._starved, max(count, 0)))
        for stream in woken:
            del self._starved[stream]
        self._called.update(woken)
        return woken

    def _has_turn(self, state: Stream) -> bool:
        """Whether the stream itself lets its socket be read."""
        if not state.credit.credit:
            return False
        return not self.attached or len(state.queue) < UNSENT_FRAMES
