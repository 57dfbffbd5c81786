"""Frames: decoded or refused, within the bounds of docs/protocol.md, and encoded again the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from protocol.errors import RemoteProtocolError
from protocol.wire import frame as wire
from protocol.wire.body import MAX_REASON
from protocol.wire.frame import (
    HEADER_SIZE,
    MAX_STREAM,
    CloseCode,
    FrameType,
    Open,
    Publish,
    Published,
    Refused,
    Unpublish,
)


def fuzz_one(data: bytes) -> None:
    """One frame, as it came out of its record."""
    frame = memoryview(data)
    try:
        kind, stream = wire.split(frame)
    except RemoteProtocolError:
        assert len(data) < HEADER_SIZE
        return
    assert (kind, stream) == (data[0], int.from_bytes(data[1:5], "big"))
    decode_again = _DECODERS.get(kind)
    if decode_again is not None:
        try:
            decode_again(frame, stream)
        except RemoteProtocolError:
            return


def _publish(frame: memoryview, _: int) -> None:
    value = Publish.decode(frame[HEADER_SIZE:])
    assert 1 <= value.publication <= MAX_STREAM
    assert _is_text(value.service, 1, 64)
    assert 1 <= value.port <= 65535
    assert Publish.decode(memoryview(value.encode())[HEADER_SIZE:]) == value


def _published(frame: memoryview, _: int) -> None:
    value = Published.decode(frame[HEADER_SIZE:])
    assert 1 <= value.publication <= MAX_STREAM
    assert 1 <= value.port <= 65535
    assert Published.decode(memoryview(value.encode())[HEADER_SIZE:]) == value


def _refused(frame: memoryview, _: int) -> None:
    value = Refused.decode(frame[HEADER_SIZE:])
    assert 1 <= value.publication <= MAX_STREAM
    assert 1 <= value.code <= 255
    assert _is_text(value.reason, 0, MAX_REASON)
    assert Refused.decode(memoryview(value.encode())[HEADER_SIZE:]) == value


def _unpublish(frame: memoryview, _: int) -> None:
    value = Unpublish.decode(frame[HEADER_SIZE:])
    assert 1 <= value.publication <= MAX_STREAM
    assert Unpublish.decode(memoryview(value.encode())[HEADER_SIZE:]) == value


def _open(frame: memoryview, stream: int) -> None:
    value = Open.decode(frame[HEADER_SIZE:])
    assert 1 <= value.publication <= MAX_STREAM
    host, port = value.source
    assert _is_text(host, 1, 64)
    assert 0 <= port <= 65535
    again = memoryview(value.encode(stream))
    assert wire.split(again) == (FrameType.OPEN, stream)
    assert Open.decode(again[HEADER_SIZE:]) == value


# The binary ones have one encoding each, so what was decoded has to come out as it came in.


def _window(frame: memoryview, stream: int) -> None:
    assert wire.window(stream, wire.decode_u32(frame)) == frame


def _fin(frame: memoryview, stream: int) -> None:
    wire.decode_empty(frame)
    assert wire.fin(stream) == frame


def _reset(frame: memoryview, stream: int) -> None:
    assert wire.reset(stream, wire.decode_u8(frame)) == frame


def _ack(frame: memoryview, stream: int) -> None:
    received = wire.decode_u64(frame)
    assert stream or wire.ack(received) == frame


def _ping(frame: memoryview, stream: int) -> None:
    received, stamp = wire.decode_u64_u64(frame)
    assert stream or wire.ping(received, stamp) == frame


def _pong(frame: memoryview, stream: int) -> None:
    received, stamp = wire.decode_u64_u64(frame)
    assert stream or wire.pong(received, stamp) == frame


def _close(frame: memoryview, stream: int) -> None:
    code = wire.decode_close(frame)
    if code is None:
        assert frame[HEADER_SIZE] not in CloseCode.__members__.values()
    else:
        assert stream or wire.close(code) == frame


def _is_text(text: str, shortest: int, longest: int) -> bool:
    return shortest <= len(text) <= longest and text.isprintable()


_DECODERS: Final[dict[int, Callable[[memoryview, int], None]]] = {
    FrameType.PUBLISH: _publish,
    FrameType.PUBLISHED: _published,
    FrameType.REFUSED: _refused,
    FrameType.UNPUBLISH: _unpublish,
    FrameType.OPEN: _open,
    FrameType.WINDOW: _window,
    FrameType.FIN: _fin,
    FrameType.RESET: _reset,
    FrameType.ACK: _ack,
    FrameType.PING: _ping,
    FrameType.PONG: _pong,
    FrameType.CLOSE: _close,
}
