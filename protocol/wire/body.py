"""Bodies that are msgpack maps: hello, welcome and the control frames.

`decode_map` turns untrusted bytes into `Fields`. The caller, who knows the layout, takes the fields
out one by one, each with its type and bounds. Anything wrong raises `RemoteProtocolError`, also
where msgpack itself would raise something else.

    fields = decode_map(body, strict=True)
    port = fields.integer("port", 1, 65535)
    reason = fields.text("reason", 0, 256) if "reason" in fields else ""
    fields.finish()

An optional field is absent, never nil.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgpack

from protocol.errors import LocalProtocolError, RemoteProtocolError

# The largest legitimate body is a welcome with 256 ports, about 1.5 KiB. The bound also limits what
# msgpack allocates for nested arrays before it has read them: 8 bytes for each announced element.
MAX_BODY: Final = 4096
MAX_ELEMENTS: Final = 256
# Characters of a reason, which people read: one line of a log.
MAX_REASON: Final = 256


def encode_map(body: Mapping[str, object]) -> bytes:
    packed: bytes = msgpack.packb(body)
    if len(packed) > MAX_BODY:
        raise LocalProtocolError(f"body of {len(packed)} bytes, at most {MAX_BODY} can be sent")
    return packed


def printable(text: str, longest: int) -> str:
    """Make `text`, such as an error of the system, valid for a text field."""
    return "".join(char if char.isprintable() else " " for char in text)[:longest]


def decode_map(data: bytes | bytearray | memoryview, *, strict: bool) -> Fields:
    """Decode an untrusted body. Raises RemoteProtocolError.

    `strict` is for bodies that never get new fields: an unknown field is then an error of the peer.
    """
    if len(data) > MAX_BODY:
        raise RemoteProtocolError(f"body of {len(data)} bytes, expected at most {MAX_BODY}")
    try:
        value = msgpack.unpackb(
            data,
            object_pairs_hook=_unique,
            max_array_len=MAX_ELEMENTS,
            max_map_len=MAX_ELEMENTS,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        # msgpack's message may quote received bytes. The name of the class says enough.
        raise RemoteProtocolError(f"malformed body ({type(error).__name__})") from None
    if type(value) is not dict:
        raise RemoteProtocolError("malformed body (not a map)")
    return Fields(value, strict=strict)


def _unique(pairs: Iterable[tuple[object, object]]) -> dict[str, object]:
    # Of equal keys msgpack would take the last, and another implementation perhaps the first.
    fields: dict[str, object] = {}
    for key, value in pairs:
        # The pure Python msgpack does not check the type of keys that it passes to a hook.
        if type(key) is not str or key in fields:
            raise RemoteProtocolError("malformed body (a key is repeated or not text)")
        fields[key] = value
    return fields


class Fields:
    """The fields of one received map that are not taken yet.

    Bounds are inclusive. Lengths of text count characters.
    """

    __slots__ = ("_fields", "_strict")

    def __init__(self, fields: dict[str, object], *, strict: bool) -> None:
        self._fields = fields
        self._strict = strict

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    def integer(self, key: str, low: int, high: int) -> int:
        return _integer(key, self._take(key), low, high)

    def number(self, key: str, low: float, high: float) -> float:
        """Take a float, or an integer in its place. NaN is outside of all bounds."""
        value = self._take(key)
        if (type(value) is float or type(value) is int) and low <= value <= high:
            return float(value)
        raise _unexpected(key, f"a number from {low:g} to {high:g}")

    def boolean(self, key: str) -> bool:
        value = self._take(key)
        if type(value) is not bool:
            raise _unexpected(key, "true or false")
        return value

    def text(self, key: str, shortest: int, longest: int) -> str:
        """Take printable text, which can go into a log line as it is."""
        return _text(key, self._take(key), shortest, longest)

    def octets(self, key: str, shortest: int, longest: int) -> bytes:
        return _octets(key, self._take(key), shortest, longest)

    def integers(self, key: str, low: int, high: int, *, most: int) -> tuple[int, ...]:
        return tuple(_integer(key, value, low, high) for value in self._array(key, most))

    def texts(self, key: str, shortest: int, longest: int, *, most: int) -> tuple[str, ...]:
        return tuple(_text(key, value, shortest, longest) for value in self._array(key, most))

    def octet_strings(
        self, key: str, shortest: int, longest: int, *, most: int
    ) -> tuple[bytes, ...]:
        return tuple(_octets(key, value, shortest, longest) for value in self._array(key, most))

    def maps(self, key: str, *, most: int) -> tuple[Fields, ...]:
        """Take an array of maps. The fields of each are to be taken, and it is to be finished."""
        return tuple(self._nested(key, value) for value in self._array(key, most))

    def map(self, key: str) -> Fields:
        """Take a map, whose fields are to be taken, and which is to be finished."""
        return self._nested(key, self._take(key))

    def finish(self) -> None:
        """To be called after the last field: an unknown one is an error if the map is strict."""
        if self._strict and self._fields:
            raise RemoteProtocolError(f"{len(self._fields)} unknown fields in a body")

    def _nested(self, key: str, value: object) -> Fields:
        if type(value) is not dict:
            raise _unexpected(key, "a map")
        return Fields(value, strict=self._strict)

    def _array(self, key: str, most: int) -> list[object]:
        value = self._take(key)
        if type(value) is not list or len(value) > most:
            raise _unexpected(key, f"an array of at most {most}")
        return value

    def _take(self, key: str) -> object:
        try:
            return self._fields.pop(key)
        except KeyError:
            raise RemoteProtocolError(f"field {key} is missing") from None


def _integer(key: str, value: object, low: int, high: int) -> int:
    # `type() is`, because a bool is an int to isinstance.
    if type(value) is not int or not low <= value <= high:
        raise _unexpected(key, f"an integer from {low} to {high}")
    return value


def _octets(key: str, value: object, shortest: int, longest: int) -> bytes:
    if type(value) is not bytes or not shortest <= len(value) <= longest:
        raise _unexpected(key, f"{_span(shortest, longest)} bytes")
    return value


def _text(key: str, value: object, shortest: int, longest: int) -> str:
    if type(value) is not str or not shortest <= len(value) <= longest or not value.isprintable():
        raise _unexpected(key, f"printable text of {_span(shortest, longest)} characters")
    return value


def _span(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _unexpected(key: str, expected: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"field {key}: expected {expected}")
