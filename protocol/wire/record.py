"""Records: frames sealed by a link.

    record = length u16 big-endian ‖ ciphertext        length counts the ciphertext

The nonce counts the link's records in that direction; after every REKEY_INTERVAL records both ends
replace the key. Neither is on the wire. So a record that was lost, repeated, moved or changed makes
opening fail, which ends the link.

Sealing and opening are synchronous and copy nothing: a frame is sealed into the buffer that is
sent, and opened from the area that was received into.
"""

from __future__ import annotations

import mmap
import struct
from typing import Final

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.wire.noise import TAG_SIZE, Buffer, CipherState

# What each frame begins with: type and stream (protocol.wire.frame).
FRAME_HEADER: Final = struct.Struct(">BI")

LENGTH: Final = struct.Struct(">H")
LENGTH_SIZE: Final = LENGTH.size
RECORD_OVERHEAD: Final = LENGTH_SIZE + TAG_SIZE

MAX_CIPHERTEXT: Final = 65535  # Noise's limit, and all that the length can say
MAX_FRAME: Final = MAX_CIPHERTEXT - TAG_SIZE
MAX_RECORD: Final = LENGTH_SIZE + MAX_CIPHERTEXT
MIN_FRAME: Final = FRAME_HEADER.size  # nothing shorter means anything
MIN_CIPHERTEXT: Final = MIN_FRAME + TAG_SIZE

# At most 64 GiB are sealed with one key, far inside the bounds of both ciphers. The interval is
# short enough that every long-lived link changes its keys.
REKEY_INTERVAL: Final = 2**20


class Sealer:
    """Makes records out of frames, for one direction of one link."""

    __slots__ = ("_cipher", "_rekey_interval")

    def __init__(self, cipher: CipherState, *, rekey_interval: int = REKEY_INTERVAL) -> None:
        self._cipher = cipher
        self._rekey_interval = rekey_interval

    def seal_into(self, frame: Buffer, out: memoryview) -> int:
        """Write the record to the front of `out` and return its length in bytes.

        `out` has room for len(frame) + RECORD_OVERHEAD bytes and does not overlap `frame`.
        """
        size = len(frame)
        if not MIN_FRAME <= size <= MAX_FRAME:
            raise LocalProtocolError(f"frame of {size} bytes")
        end = size + RECORD_OVERHEAD
        if len(out) < end:
            raise LocalProtocolError(f"record of {end} bytes in a buffer of {len(out)}")
        cipher = self._cipher
        LENGTH.pack_into(out, 0, size + TAG_SIZE)
        cipher.seal_into(frame, out[LENGTH_SIZE:end])
        # The nonce counts this direction's records, the same at both ends.
        if cipher.nonce % self._rekey_interval == 0:
            cipher.rekey()
        return end


def lazy_area(size: int) -> memoryview:
    """A buffer whose pages take memory only once they are written.

    It is a private mapping. Most links are quiet most of the time and touch only the first page.
    Otherwise 2,000 links would hold 2,000 whole areas, and on a router the area of its one link
    would be larger than everything else.
    """
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE))


class Opener:
    """Receives records and opens them, for one direction of one link.

        n = receive into opener.space()
        opener.received(n)
        while (frame := opener.next_frame()) is not None: ...

    If all frames are taken like this, there is always space. An error is final: the link is lost.
    """

    __slots__ = ("_area", "_cipher", "_end", "_opened", "_plaintext", "_rekey_interval", "_start")

    def __init__(
        self,
        cipher: CipherState,
        *,
        capacity: int,
        plaintext: memoryview | None = None,
        rekey_interval: int = REKEY_INTERVAL,
    ) -> None:
        if capacity < MAX_RECORD:
            raise LocalProtocolError(f"capacity of {capacity} bytes, a record has {MAX_RECORD}")
        self._cipher = cipher
        self._rekey_interval = rekey_interval
        # It has room for all that is received at once, since frames are shorter than their records.
        self._plaintext = lazy_area(capacity) if plaintext is None else plaintext
        self._opened = 0
        self._area = lazy_area(capacity)
        # Received and not yet opened is _area[_start:_end].
        self._start = 0
        self._end = 0

    def space(self) -> memoryview:
        """Where to receive into. It has room for the rest of a record that has begun."""
        area, start, end = self._area, self._start, self._end
        self._opened = 0
        if start == end:
            self._start = self._end = end = 0
        elif start and len(area) - end < MAX_RECORD:
            # To move what is left (less than a record) costs less than to receive in small pieces.
            area[: end - start] = area[start:end]
            self._start, self._end = 0, end - start
            end -= start
        if end == len(area):
            raise LocalProtocolError("no space: frames are waiting to be taken")
        return area[end:]

    def received(self, count: int) -> None:
        """`count` bytes were written to the front of `space()`."""
        if not 0 <= count <= len(self._area) - self._end:
            raise LocalProtocolError(f"{count} bytes received into less space")
        self._end += count

    def next_frame(self) -> memoryview | None:
        """Open the next frame; None if its record is not complete. Raises RemoteProtocolError.

        The frame is valid until the next call of `space`, of this opener or of another one with the
        same plaintext area.
        """
        area, start = self._area, self._start
        available = self._end - start
        if available < LENGTH_SIZE:
            return None
        (size,) = LENGTH.unpack_from(area, start)
        if size < MIN_CIPHERTEXT:
            raise RemoteProtocolError(f"record of {size} bytes, expected at least {MIN_CIPHERTEXT}")
        if available < LENGTH_SIZE + size:
            return None
        begin = start + LENGTH_SIZE
        end = begin + size
        cipher = self._cipher
        opened = self._opened
        frame = self._plaintext[opened : opened + size - TAG_SIZE]
        cipher.open_into(area[begin:end], frame)
        if cipher.nonce % self._rekey_interval == 0:
            cipher.rekey()
        self._start = end
        self._opened = opened + size - TAG_SIZE
        return frame
