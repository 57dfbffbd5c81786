"""Bodies: two decoders of msgpack, the C one and the Python one, agree on what is let in.

A relay has the first and a router may have the second, so what one takes the other must take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from unittest import mock

import msgpack
from msgpack import fallback

from protocol.errors import RemoteProtocolError
from protocol.wire.body import MAX_BODY, Fields, decode_map

_UNPACKERS: Final = (msgpack.unpackb, fallback.unpackb)
# What a body may hold, and how it is asked for. One name a type, so that a seed can hold all.
_TAKE: Final[dict[str, Callable[[Fields], object]]] = {
    "integer": lambda fields: fields.integer("integer", 1, 65535),
    "number": lambda fields: fields.number("number", 0.0, 86_400.0),
    "boolean": lambda fields: fields.boolean("boolean"),
    "text": lambda fields: fields.text("text", 1, 64),
    "octets": lambda fields: fields.octets("octets", 16, 64),
    "integers": lambda fields: fields.integers("integers", 1, 65535, most=256),
    "texts": lambda fields: fields.texts("texts", 1, 32, most=32),
}


def fuzz_one(data: bytes) -> None:
    decoded = [_decode(data, unpackb) for unpackb in _UNPACKERS]
    # NaN is not itself, and its text is.
    assert repr(decoded[0]) == repr(decoded[1]), "the two decoders disagree"
    if decoded[0] is None:
        return
    assert len(data) <= MAX_BODY
    assert msgpack.packb(decoded[0]) is not None
    for strict in (False, True):
        _take_all(decode_map(data, strict=strict), strict=strict)


def _decode(data: bytes, unpackb: object) -> dict[str, object] | None:
    with mock.patch.object(msgpack, "unpackb", unpackb):
        try:
            return decode_map(data, strict=True)._fields
        except RemoteProtocolError:
            return None


def _take_all(fields: Fields, *, strict: bool) -> None:
    known = set(fields._fields)
    for name, take in _TAKE.items():
        try:
            value = take(fields)
        except RemoteProtocolError:
            continue
        assert name in known
        assert _within_bounds(name, value), f"{name} let {value!r} in"
    if "map" in known:
        try:
            _take_all(fields.map("map"), strict=strict)
        except RemoteProtocolError:
            assert strict
    try:
        fields.finish()
    except RemoteProtocolError:
        assert strict
        assert known - set(_TAKE) - {"map"}


def _within_bounds(name: str, value: object) -> bool:
    match name, value:
        case "integer", int():
            return 1 <= value <= 65535
        case "number", float():
            return 0.0 <= value <= 86_400.0
        case "boolean", bool():
            return True
        case "text", str():
            return 1 <= len(value) <= 64 and value.isprintable()
        case "octets", bytes():
            return 16 <= len(value) <= 64
        case "integers", tuple():
            return len(value) <= 256 and all(1 <= number <= 65535 for number in value)
        case "texts", tuple():
            return len(value) <= 32 and all(
                1 <= len(text) <= 32 and text.isprintable() for text in value
            )
    return False
