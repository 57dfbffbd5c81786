"""Bytes read as decisions: what a fuzzer changes, and a target makes sense of whatever they are."""

from __future__ import annotations


class Choices:
    """Reads from the front; once the bytes are used up, every number is 0 and every piece empty.

    Small numbers take one byte, so that one changed byte is one changed decision.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.piece(size).ljust(size, b"\0"), "big")

    def below(self, limit: int) -> int:
        """0…limit-1; of up to 256 the one byte is the number itself."""
        return self.number(1 if limit <= 256 else 4) % limit

    def flag(self) -> bool:
        return bool(self.number() & 1)

    def piece(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def framed(self) -> bytes:
        """A piece behind its own u16 length."""
        return self.piece(self.number(2))

    def rest(self) -> bytes:
        return self.piece(len(self._data))
