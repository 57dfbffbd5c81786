"""A pool of equal buffers.

Allocating 64 KiB for every read costs as much as sealing it. A buffer leaves the pool with a read,
rests in replay until its frame is acked, and comes back.
"""

from __future__ import annotations

from typing import Final

from protocol.record import MAX_FRAME

# 64 spare frames are 4 MiB: what one fast stream has in flight on a LAN. More only hides memory.
SPARE_FRAMES: Final = 64


class BufferPool:
    def __init__(self, size: int = MAX_FRAME, *, spare: int = SPARE_FRAMES) -> None:
        self.size = size
        self._spare = spare
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        return self._free.pop() if self._free else bytearray(self.size)

    def give(self, buffer: bytearray) -> None:
        if len(self._free) < self._spare:
            self._free.append(buffer)
