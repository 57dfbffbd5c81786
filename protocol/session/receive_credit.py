"""What the peer may send: the session's window, each stream's, and the updates that are due.

    data arrives ──accept──▶ unread ──consumed──▶ told to the peer by `next_update`
                               └──abandon: nobody will write it; session credit returns at once

Updates are made when they go out, so that one tells all that is due.
"""

from __future__ import annotations

from protocol.session.stream import End, Stream
from protocol.session.window import ReceiveWindow
from protocol.wire import frame as wire


class ReceiveCredit:
    __slots__ = ("_promised", "_session", "due")

    def __init__(self, session_window: int) -> None:
        self._session = ReceiveWindow(session_window)
        # Whose updates are due, and whether the stream's window may grow; None is the session.
        self.due: dict[Stream | None, bool] = {}
        self._promised = 0  # sum of the open streams' windows, bytes

    def opened(self, state: Stream) -> None:
        self._promised += state.window.size

    def closed(self, state: Stream) -> None:
        self._promised -= state.window.size
        self.due.pop(state, None)

    def accept(self, count: int) -> None:
        """`count` bytes came, for whatever stream."""
        self._session.accept(count)
        if self._session.pinched:
            self.due[None] = False

    def returned(self, count: int) -> None:
        """`count` bytes take no memory any more."""
        if count and (self._session.consume(count) or self._session.pinched):
            self.due[None] = False

    def consumed(self, state: Stream, count: int, *, kept_up: bool) -> None:
        """`count` bytes of `state` were written to the local socket."""
        state.settle(count)
        self.returned(count)
        if state.window.consume(count) and state.receiving is End.OPEN:
            self.due[state] = kept_up

    def abandon(self, state: Stream) -> None:
        """Nobody will write what came for `state`, or what comes yet."""
        if state.receiving is not End.DONE:
            state.abandoned = state.receiving is End.OPEN
            state.receiving = End.DONE
            self.returned(state.settle_all())

    def next_update(self, now: float, min_rtt: float) -> bytes | None:
        """The next WINDOW frame that is due."""
        while self.due:
            state, kept_up = self.due.popitem()
            if state is None:
                return wire.window(0, self._session.take_update(now, min_rtt, grow=False))
            if state.receiving is End.OPEN:
                return wire.window(state.id, self._update(state, kept_up, now, min_rtt))
        return None

    def _update(self, state: Stream, kept_up: bool, now: float, min_rtt: float) -> int:
        window = state.window
        before = window.size
        # Grown windows leave a quarter of the session's alone: else two streams whose readers stand
        # still (downloads suspended at the laptop) could hold all of it and stop every other one.
        fits = self._promised + before <= self._session.size * 3 // 4
        increment = window.take_update(now, min_rtt, grow=kept_up and fits)
        self._promised += window.size - before
        return increment
