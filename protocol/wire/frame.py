"""Frames: the plaintext unit of a session (docs/protocol.md, "Frames").

A frame is `type u8 ‖ stream u32 ‖ body`, big-endian. Sequenced frames are numbered implicitly, with
one count for each direction, and are kept for replay. Link-local frames are lost with their link.
Stream 0 is the session itself.

DATA, WINDOW, FIN, RESET, ACK, PING, PONG and CLOSE have fixed binary bodies; the others are msgpack
maps. The only error that a received frame raises is `RemoteProtocolError`.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from protocol.errors import RemoteProtocolError
from protocol.wire.body import MAX_REASON, decode_map, encode_map, printable
from protocol.wire.identifiers import SocketAddress
from protocol.wire.record import FRAME_HEADER, MAX_FRAME

HEADER_SIZE: Final = FRAME_HEADER.size
MAX_PAYLOAD: Final = MAX_FRAME - HEADER_SIZE
_U8: Final = struct.Struct(">BIB")
_U32: Final = struct.Struct(">BII")
_U64: Final = struct.Struct(">BIQ")
_U64_U64: Final = struct.Struct(">BIQQ")

MAX_STREAM: Final = 2**32 - 1
# The largest credit of a sender, and the largest increment, so that their sum fits into 32 bits.
MAX_WINDOW: Final = 2**31 - 1


class FrameType(enum.IntEnum):
    # Sequenced.
    PUBLISH = 0x01
    PUBLISHED = 0x02
    REFUSED = 0x03
    UNPUBLISH = 0x04
    OPEN = 0x05
    DATA = 0x06
    WINDOW = 0x07
    FIN = 0x08
    RESET = 0x09
    # Link-local.
    WELCOME = 0x41
    DENIED = 0x42
    ACK = 0x43
    PING = 0x44
    PONG = 0x45
    CLOSE = 0x46


# With it, the data path tells the two kinds apart by one comparison.
LAST_SEQUENCED: Final = 0x3F


class CloseCode(enum.IntEnum):
    """Why a side says goodbye."""

    GONE = 1  # it stops for good, and the session ends with it
    RESTARTING = 2  # it comes back; a session that it could not keep is reset then


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """The agent asks the relay to open `port` for `service`; `port` is never 0."""

    publication: int
    service: str
    port: int

    def encode(self) -> bytes:
        body = {"id": self.publication, "service": self.service, "port": self.port}
        return _map_frame(FrameType.PUBLISH, body)

    @classmethod
    def decode(cls, body: memoryview) -> Publish:
        fields = decode_map(body, strict=True)
        value = cls(
            publication=fields.integer("id", 1, MAX_STREAM),
            service=fields.text("service", 1, 64),
            port=fields.integer("port", 1, 65535),
        )
        fields.finish()
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The relay listens on `port` for this publication."""

    publication: int
    port: int

    def encode(self) -> bytes:
        return _map_frame(FrameType.PUBLISHED, {"id": self.publication, "port": self.port})

    @classmethod
    def decode(cls, body: memoryview) -> Published:
        fields = decode_map(body, strict=True)
        value = cls(
            publication=fields.integer("id", 1, MAX_STREAM),
            port=fields.integer("port", 1, 65535),
        )
        fields.finish()
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The relay does not listen for this publication; `code` is a `RefusalCode` or unknown."""

    publication: int
    code: int
    reason: str

    def encode(self) -> bytes:
        reason = printable(self.reason, MAX_REASON)
        body = {"id": self.publication, "code": self.code, "reason": reason}
        return _map_frame(FrameType.REFUSED, body)

    @classmethod
    def decode(cls, body: memoryview) -> Refused:
        fields = decode_map(body, strict=True)
        value = cls(
            publication=fields.integer("id", 1, MAX_STREAM),
            code=fields.integer("code", 1, 255),
            reason=fields.text("reason", 0, MAX_REASON),
        )
        fields.finish()
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpublish:
    """The agent withdraws a publication; its open streams go on."""

    publication: int

    def encode(self) -> bytes:
        return _map_frame(FrameType.UNPUBLISH, {"id": self.publication})

    @classmethod
    def decode(cls, body: memoryview) -> Unpublish:
        fields = decode_map(body, strict=True)
        value = cls(publication=fields.integer("id", 1, MAX_STREAM))
        fields.finish()
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """The relay opens a stream: a visitor came from `source` (address, port)."""

    publication: int
    source: SocketAddress

    def encode(self, stream: int) -> bytes:
        host, port = self.source
        body = {"id": self.publication, "host": host, "port": port}
        return _map_frame(FrameType.OPEN, body, stream)

    @classmethod
    def decode(cls, body: memoryview) -> Open:
        fields = decode_map(body, strict=True)
        value = cls(
            publication=fields.integer("id", 1, MAX_STREAM),
            source=(fields.text("host", 1, 64), fields.integer("port", 0, 65535)),
        )
        fields.finish()
        return value


def _map_frame(kind: FrameType, body: dict[str, object], stream: int = 0) -> bytes:
    return FRAME_HEADER.pack(kind, stream) + encode_map(body)


def window(stream: int, increment: int) -> bytes:
    return _U32.pack(FrameType.WINDOW, stream, increment)


def fin(stream: int) -> bytes:
    return FRAME_HEADER.pack(FrameType.FIN, stream)


def reset(stream: int, code: int) -> bytes:
    return _U8.pack(FrameType.RESET, stream, code)


def ack(received: int) -> bytes:
    return _U64.pack(FrameType.ACK, 0, received)


def ping(received: int, stamp: int) -> bytes:
    """`stamp` comes back in the PONG; the peer does not interpret it."""
    return _U64_U64.pack(FrameType.PING, 0, received, stamp)


def pong(received: int, stamp: int) -> bytes:
    return _U64_U64.pack(FrameType.PONG, 0, received, stamp)


def close(code: CloseCode) -> bytes:
    return _U8.pack(FrameType.CLOSE, 0, code)


def link_frame(kind: FrameType, body: bytes) -> bytes:
    """WELCOME or DENIED, whose bodies `protocol.wire.hello` encodes."""
    return FRAME_HEADER.pack(kind, 0) + body


def data_header(stream: int) -> bytes:
    """The header of a DATA frame; the payload follows it."""
    return FRAME_HEADER.pack(FrameType.DATA, stream)


def split(frame: memoryview) -> tuple[int, int]:
    """Type and stream of a frame; the body is `frame[HEADER_SIZE:]`."""
    if len(frame) < HEADER_SIZE:
        raise RemoteProtocolError("frame shorter than its header")
    kind, stream = FRAME_HEADER.unpack_from(frame)
    return kind, stream


def decode_u8(frame: memoryview) -> int:
    return int(_fixed(_U8, frame)[2])


def decode_close(frame: memoryview) -> CloseCode | None:
    """None for a code that this version does not know."""
    code = decode_u8(frame)
    return CloseCode(code) if code in CloseCode.__members__.values() else None


def decode_u32(frame: memoryview) -> int:
    return int(_fixed(_U32, frame)[2])


def decode_u64(frame: memoryview) -> int:
    return int(_fixed(_U64, frame)[2])


def decode_u64_u64(frame: memoryview) -> tuple[int, int]:
    _, _, first, second = _fixed(_U64_U64, frame)
    return first, second


def decode_empty(frame: memoryview) -> None:
    _fixed(FRAME_HEADER, frame)


def _fixed(layout: struct.Struct, frame: memoryview) -> tuple[int, ...]:
    if len(frame) != layout.size:
        raise RemoteProtocolError(
            f"frame of type {frame[0]:#04x} has {len(frame)} bytes, not {layout.size}"
        )
    return layout.unpack(frame)
