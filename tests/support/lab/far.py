"""The far end of the traffic, run by the router's SSH server with nothing but Python.

    far.py lines SECONDS   say a numbered line so often, and check those that come
    far.py take TALLY      check the pattern on stdin to its end
    far.py give TALLY      write the pattern until stdin ends

Each says on stdout or stderr what it counted, and ends with status 3 if a line or a byte was amiss.
The file TALLY holds the count of bytes at any time: what it was when the connection broke.
The near end, `traffic`, imports the pattern from here.
"""

from __future__ import annotations

import array
import os
import select
import sys
import time
from typing import Final

# The pattern is the count of its own 8-byte words, so every byte lost, doubled or misplaced shows.
WORD: Final = 8
PIECE: Final = 1 << 14


def pattern(start: int, size: int) -> bytes:
    """`size` bytes from position `start` on."""
    first, last = start // WORD, (start + size + WORD - 1) // WORD
    words = array.array("Q", range(first, last))
    if sys.byteorder == "little":
        words.byteswap()
    return words.tobytes()[start - first * WORD :][:size]


def lines(pace: float) -> int:
    """Say "NUMBER LAST-HEARD" every `pace` seconds; hear NUMBER and its newline."""
    said = heard = 0
    rest = b""
    longest, last = 0.0, time.monotonic()
    due = last
    while True:
        now = time.monotonic()
        if now >= due:
            said += 1
            due = max(due + pace, now)
            os.write(1, b"%d %d\n" % (said, heard))
        if not select.select([0], [], [], max(0.0, due - now))[0]:
            continue
        data = os.read(0, 1 << 14)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        if not data:
            break
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            heard += 1
            if line != b"%d" % heard:
                sys.stderr.write(f"expected line {heard}, got {line!r}\n")
                return 3
    os.write(1, b"end %d %d\n" % (heard, longest * 1000))
    return 0


class Tally:
    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT)

    def write(self, count: int) -> None:
        os.pwrite(self._file, b"%020d" % count, 0)


def take(tally: Tally) -> int:
    position = 0
    while data := os.read(0, 1 << 16):
        if data != pattern(position, len(data)):
            sys.stderr.write(f"not the pattern between {position} and {position + len(data)}\n")
            return 3
        position += len(data)
        tally.write(position)
    os.write(1, b"%d\n" % position)
    return 0


def give(tally: Tally) -> int:
    position = 0
    while not select.select([0], [], [], 0)[0]:
        position += os.write(1, pattern(position, PIECE))
        tally.write(position)
    os.write(2, b"%d\n" % position)
    return 0


def main() -> int:
    match sys.argv[1:]:
        case ["lines", pace]:
            return lines(float(pace))
        case ["take", path]:
            return take(Tally(path))
        case ["give", path]:
            return give(Tally(path))
    return 2


if __name__ == "__main__":
    sys.exit(main())
