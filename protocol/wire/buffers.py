"""A pool of buffers of one size.

To allocate 64 KiB for every read would cost as much time as sealing it. A buffer is taken for a
read, stays in replay until its frame is acked, and is given back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from protocol.wire.record import MAX_FRAME

# 64 frames are 4 MiB: what one fast stream has in flight on a LAN. More would rarely be used.
SPARE_FRAMES: Final = 64


B = TypeVar("B", bytearray, memoryview)


class Pool(Generic[B]):
    def __init__(self, make: Callable[[int], B], size: int, *, spare: int) -> None:
        """`make` makes a buffer of so many bytes; the pool keeps at most `spare` unused ones."""
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
    """Buffers for frames."""

    def __init__(self, size: int = MAX_FRAME, *, spare: int = SPARE_FRAMES) -> None:
        super().__init__(bytearray, size, spare=spare)
