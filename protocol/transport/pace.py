"""How much may lie in front of a keystroke, by the speed of the path.

What the socket has taken can be overtaken by nothing. So on a slow path records are small, one is
sealed at a time, and the next only when the kernel has less than `unsent` left that it never sent;
on a fast one that would be all overhead.

The rate is the kernel's own estimate (TCP_INFO, tcpi_delivery_rate): the highest of the last few
looks, since one may fall into a pause. A look while little was sent says how much that was and not
what the path could take, so it counts only if it is higher than what is known.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from protocol.wire.frame import HEADER_SIZE, MAX_PAYLOAD
from protocol.wire.record import RECORD_OVERHEAD

# At most this long does what is sent at once take to leave: a tenth of what a typist notices.
SPAN: Final = 0.005
# Seconds between looks at the kernel's estimate; with so many looks the memory is half a second.
INTERVAL: Final = 0.1
LOOKS: Final = 5
# As long as nothing is known: for the first 100 ms of a fast path little is lost by it, and of a
# slow one little is in front.
UNKNOWN: Final = 16 * 1024
_UNKNOWN_RATE: Final = int(UNKNOWN / SPAN)
# Beyond this the kernel's queue is never empty between two of our turns on any path.
UNSENT_MOST: Final = 256 * 1024
# The kernel calls a sender limited by its application that has less than a segment unsent.
UNSENT_SEGMENTS: Final = 2
_OVERHEAD: Final = HEADER_SIZE + RECORD_OVERHEAD


class Pace:
    """Sizes in bytes, for one link. A `batch` smaller than that may have another record."""

    __slots__ = ("_looks", "_most", "batch", "record", "unsent")

    def __init__(self, most: int) -> None:
        """`most` is the largest batch."""
        self._most = most
        self._looks: deque[int] = deque(maxlen=LOOKS)
        self.record = UNKNOWN
        self.batch = UNKNOWN
        self.unsent = UNKNOWN

    @property
    def bounded(self) -> bool:
        """Whether to look at what is unsent before each send; else the path is fast enough."""
        return self.batch < self._most

    def learn(self, rate: int, *, app_limited: bool, segment: int) -> bool:
        """Take one look at the path: bytes a second, and bytes in a full segment.

        Returns whether the sizes may be others now.
        """
        if not rate or (app_limited and rate <= max(self._looks, default=_UNKNOWN_RATE)):
            return False
        self._looks.append(rate)
        span = int(max(self._looks) * SPAN)
        # A record that ends with its segment does not wait for the next one's.
        least = max(segment - _OVERHEAD, 1)
        self.record = min(max(span, least), MAX_PAYLOAD)
        self.batch = min(max(span, self.record + _OVERHEAD), self._most)
        self.unsent = min(max(span, UNSENT_SEGMENTS * segment), UNSENT_MOST)
        return True
