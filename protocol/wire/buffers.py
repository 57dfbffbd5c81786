"""A pool of equal buffers.

Allocating 64 KiB for every read costs as much as sealing it. A buffer leaves the pool with a read,
rests in replay until its frame is acked, and comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from protocol.wire.record import MAX_FRAME

# 64 spare frames are 4 MiB: what one fast stream has in flight on a LAN. More only hides memory.
SPARE_FRAMES: Final = 64


B = TypeVar("B", bytearray, memoryview)


class Pool(Generic[B]):
    def __init__(self, make: Callable[[int], B], size: int, *, spare: int) -> None:
        self.size = size
        self._make: Callable[[int], B] = make
        self._spare = spare
        self._free: list[B] = []

    def take(self) -> B:
        return self._free.pop() if self._free else self._make(self.size)

    def give(self, buffer: B) -> None:
        if len(self._free) < self._spare:
            self._free.append(buffer)


class BufferPool(Pool[bytearray]):
    """Of frames."""

    def __init__(self, size: int = MAX_FRAME, *, spare: int = SPARE_FRAMES) -> None:
        super().__init__(bytearray, size, spare=spare)
