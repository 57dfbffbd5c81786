"""Flow control: what the peer may still send (receive side) and what we may (send side).

Credit means *written to the local socket*, never merely received: a window is a promise of memory.

ReceiveWindow:  accept(n)  on arrival    → error of the peer beyond what was granted
                consume(n) when written  → True when an update is due (half the window)
                pinched                  → True when one is due sooner (the session's window)
                take_update()            → the increment for a WINDOW frame
"""

from __future__ import annotations

from typing import Final

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.wire.frame import MAX_WINDOW

# On a fast path the measured RTT is tens of microseconds, less than one turn of this program;
# without a floor the growth rule would never fire there.
MIN_RTT_FLOOR: Final = 0.002


class SendWindow:
    """Credit that the peer granted and we have not used."""

    __slots__ = ("credit",)

    def __init__(self, initial: int) -> None:
        self.credit = initial

    def use(self, count: int) -> None:
        if count > self.credit:
            raise LocalProtocolError(f"sending {count} bytes with a credit of {self.credit}")
        self.credit -= count

    def grant(self, increment: int) -> None:
        if not 0 < increment <= MAX_WINDOW - self.credit:
            raise RemoteProtocolError(f"window increment {increment} out of range")
        self.credit += increment

    def refund(self, count: int) -> None:
        """Take back what `use` took for bytes that will not be sent.

        Not a `grant`: the peer may have granted up to the limit meanwhile, which is no error.
        """
        self.credit += count


class ReceiveWindow:
    """What we granted and the peer has not used, and what we consumed and did not tell yet."""

    __slots__ = ("_available", "_consumed", "_updated", "limit", "size")

    def __init__(self, size: int, *, limit: int | None = None, now: float = 0.0) -> None:
        self.size = size
        self.limit = size if limit is None else limit
        self._available = size
        self._consumed = 0
        self._updated = now

    def accept(self, count: int) -> None:
        if count > self._available:
            raise RemoteProtocolError(f"{count} bytes sent into a window of {self._available}")
        self._available -= count

    def consume(self, count: int) -> bool:
        """Count bytes written to the local socket; True when the peer should hear of it."""
        self._consumed += count
        return self._consumed * 2 >= self.size

    @property
    def pinched(self) -> bool:
        """Whether the peer has less left than what we could give back to it.

        Half the window may never be consumed where several streams share it: what lies unread in
        some would then keep the rest from all others.
        """
        return 0 < self._consumed >= self._available

    def take_update(self, now: float, min_rtt: float, *, grow: bool) -> int:
        """The increment to grant now.

        Doubles the window if half of it went in less than two minimum RTTs: then the window, not
        the local socket or the path, is what holds the peer back.
        """
        increment = self._consumed
        fast = now - self._updated < 2 * max(min_rtt, MIN_RTT_FLOOR)
        if grow and fast and self.size < self.limit:
            larger = min(self.size * 2, self.limit)
            increment += larger - self.size
            self.size = larger
        self._consumed = 0
        self._updated = now
        self._available += increment
        return increment
