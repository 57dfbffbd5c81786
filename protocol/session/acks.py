"""What we received and when to say so.

ACK means authenticated and accepted into memory, nothing about the local socket. It is what lets
the peer forget a frame, so it must come soon, but not for every frame.
"""

from __future__ import annotations

from typing import Final

# The peer keeps at most this much more in replay for our silence.
ACK_BYTES: Final = 256 * 1024
ACK_FRAMES: Final = 32
# Longest wait: well under a human's notice and under every liveness timer.
ACK_DELAY: Final = 0.05


class Acks:
    __slots__ = ("_bytes", "_frames", "deadline", "due", "received")

    def __init__(self) -> None:
        self.received = 0  # sequenced frames, cumulative over the session
        self.settle()

    def count(self, size: int, now: float) -> bool:
        """A sequenced frame of `size` bytes was accepted; True if that began a wait."""
        self.received += 1
        self._frames += 1
        self._bytes += size
        if self._frames >= ACK_FRAMES or self._bytes >= ACK_BYTES:
            self.due = True
        if self._frames == 1:
            self.deadline = now + ACK_DELAY
            return True
        return False

    def check(self, now: float) -> None:
        if now >= self.deadline:
            self.due = True
            # The link may be full for long: a deadline left behind would come due again at once.
            self.deadline = float("inf")

    def settle(self) -> None:
        """The peer is being told `received`, by whatever frame."""
        self._frames = 0
        self._bytes = 0
        self.due = False
        self.deadline = float("inf")
