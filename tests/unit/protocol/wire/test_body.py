from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.wire.body import MAX_BODY, MAX_ELEMENTS, Fields, decode_map, encode_map, printable

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(scalars.filter(lambda key: key == key), inner, max_size=5)
    ),
    max_leaves=20,
)


def fields_of(value: object, *, strict: bool = True) -> Fields:
    return decode_map(msgpack.packb({"key": value}), strict=strict)


def refuses(take: Callable[[Fields], object], value: object, expected: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        take(fields_of(value))
    assert str(caught.value) == f"field key: expected {expected}"


class TestDecode:
    def test_a_map(self) -> None:
        fields = decode_map(b"\x82\xa1a\x01\xa1b\xa1x", strict=True)
        assert "a" in fields
        assert "c" not in fields
        assert fields.integer("a", 0, 9) == 1
        assert fields.text("b", 0, 9) == "x"
        assert "a" not in fields
        fields.finish()

    @pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
    def test_any_buffer(self, wrap: Callable[[bytes], bytes]) -> None:
        assert decode_map(wrap(b"\x81\xa1a\x01"), strict=True).integer("a", 0, 9) == 1

    @pytest.mark.parametrize(
        ("data", "case"),
        [
            (b"", "nothing"),
            (b"\x81\xa1a", "cut short"),
            (b"\x81\xa1a\x01\x01", "trailing byte"),
            (b"\x80\x80", "trailing map"),
            (b"\x90", "array"),
            (b"\xc0", "nil"),
            (b"\x01", "integer"),
            (b"\xc1", "the type that is never used"),
            (b"\x81\x01\x01", "integer key"),
            (b"\x81\xc0\x01", "nil key"),
            (b"\x81\xc4\x01a\x01", "binary key"),
            (b"\x81\x91\x01\x01", "array as key"),
            (b"\x81\x80\x01", "map as key"),
            (b"\x82\xa1a\x01\xa1a\x02", "repeated key"),
            (b"\x81\xa1a\x82\xa1b\x01\xa1b\x01", "repeated key, nested"),
            (b"\x81\xa1\xff\x01", "key not UTF-8"),
            (b"\x81\xa1a\xa1\xff", "text not UTF-8"),
            (b"\x81\xa1a\xa3\xed\xa0\x80", "text with a surrogate"),
            (b"\x81\xa1a\xd4\x05\x00", "extension"),
            (b"\x81\xa1a\xd6\xff\x00\x00\x00\x00", "time stamp"),
            (b"\x81\xa1a\xdd\xff\xff\xff\xff", "array of four billion"),
            (b"\x81\xa1a\xdf\xff\xff\xff\xff", "map of four billion"),
            (b"\x81\xa1a\xdb\xff\xff\xff\xff", "text of four billion"),
            (b"\x81\xa1a\xc6\xff\xff\xff\xff", "binary of four billion"),
            (b"\x81\xa1a" + b"\x91" * 4000, "deep arrays, cut short"),
            (b"\x81\xa1a" + b"\x91" * 4000 + b"\x01", "deep arrays"),
            (b"\x81\xa1a" * 1300 + b"\x01", "deep maps"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_malformed(self, data: bytes, case: str) -> None:
        for strict in (True, False):
            with pytest.raises(RemoteProtocolError, match="malformed body"):
                decode_map(data, strict=strict)

    def test_an_empty_extension_is_of_no_type(self) -> None:
        # msgpack's bound lets this one pass.
        with pytest.raises(RemoteProtocolError, match="expected 0 to 9 bytes"):
            decode_map(b"\x81\xa1a\xc7\x00\x05", strict=True).octets("a", 0, 9)

    def test_size_at_the_edge(self) -> None:
        def body(size: int) -> bytes:
            return b"\x81\xa1a\xc5" + (size - 6).to_bytes(2, "big") + bytes(size - 6)

        decode_map(body(MAX_BODY), strict=True).octets("a", 0, MAX_BODY)
        with pytest.raises(RemoteProtocolError, match="at most 4096"):
            decode_map(body(MAX_BODY + 1), strict=True)

    def test_elements_at_the_edge(self) -> None:
        fields_of([0] * MAX_ELEMENTS)
        fields_of({str(n): n for n in range(MAX_ELEMENTS)})
        for value in ([0] * (MAX_ELEMENTS + 1), {str(n): n for n in range(MAX_ELEMENTS + 1)}):
            with pytest.raises(RemoteProtocolError, match="malformed body"):
                fields_of(value)

    def test_errors_quote_nothing_received(self) -> None:
        for data in (b"\x81\xa6secret\x01\x01", b"\x82\xa6secret\x01\xa6secret\x01"):
            with pytest.raises(RemoteProtocolError) as caught:
                decode_map(data, strict=True)
            assert "secret" not in str(caught.value)

    @given(st.binary(max_size=64) | values.map(msgpack.packb))
    def test_arbitrary_bytes(self, data: bytes) -> None:
        with contextlib.suppress(RemoteProtocolError):
            assert isinstance(decode_map(data, strict=True), Fields)

    @given(values)
    def test_arbitrary_values_for_every_type(self, value: object) -> None:
        takes: list[Callable[[Fields], object]] = [
            lambda fields: fields.integer("key", 0, 9),
            lambda fields: fields.number("key", 0.0, 9.0),
            lambda fields: fields.boolean("key"),
            lambda fields: fields.text("key", 0, 9),
            lambda fields: fields.octets("key", 0, 9),
            lambda fields: fields.integers("key", 0, 9, most=3),
            lambda fields: fields.texts("key", 0, 9, most=3),
            lambda fields: fields.map("key").finish(),
        ]
        for take in takes:
            with contextlib.suppress(RemoteProtocolError):
                take(fields_of(value))


class TestFields:
    @pytest.mark.parametrize("value", [3, 7])
    def test_integer(self, value: int) -> None:
        assert fields_of(value).integer("key", 3, 7) == value

    @pytest.mark.parametrize("value", [2, 8, -1, 2**64 - 1, 5.0, True, "5", None, [5]])
    def test_not_the_integer(self, value: object) -> None:
        refuses(lambda fields: fields.integer("key", 3, 7), value, "an integer from 3 to 7")

    @pytest.mark.parametrize("value", [0, 0.0, 1.5, 3, 3.5])
    def test_number(self, value: float) -> None:
        number = fields_of(value).number("key", 0.0, 3.5)
        assert number == value
        assert type(number) is float

    @pytest.mark.parametrize("value", [-1, 3.6, float("nan"), float("inf"), True, "1", None])
    def test_not_the_number(self, value: object) -> None:
        refuses(lambda fields: fields.number("key", 0.0, 3.5), value, "a number from 0 to 3.5")

    @pytest.mark.parametrize("value", [True, False])
    def test_boolean(self, value: bool) -> None:
        assert fields_of(value).boolean("key") is value

    @pytest.mark.parametrize("value", [0, 1, None, "true"])
    def test_not_the_boolean(self, value: object) -> None:
        refuses(lambda fields: fields.boolean("key"), value, "true or false")

    @pytest.mark.parametrize("value", ["ab", "äöü", "日本語", "a b"])
    def test_text(self, value: str) -> None:
        assert fields_of(value).text("key", 2, 3) == value

    @pytest.mark.parametrize("value", ["a", "abcd", "a\n", "a\x1b", "a\u202e", b"ab", 12, None])
    def test_not_the_text(self, value: object) -> None:
        expected = "printable text of 2 to 3 characters"
        refuses(lambda fields: fields.text("key", 2, 3), value, expected)

    @pytest.mark.parametrize("value", [b"ab", b"\xff\0\n"])
    def test_octets(self, value: bytes) -> None:
        assert fields_of(value).octets("key", 2, 3) == value

    @pytest.mark.parametrize("value", [b"a", b"abcd", "ab", None])
    def test_not_the_octets(self, value: object) -> None:
        refuses(lambda fields: fields.octets("key", 2, 3), value, "2 to 3 bytes")
        refuses(lambda fields: fields.octets("key", 2, 2), value, "2 bytes")

    @pytest.mark.parametrize("value", [[], [3], [7, 3]])
    def test_integers(self, value: list[int]) -> None:
        assert fields_of(value).integers("key", 3, 7, most=2) == tuple(value)

    def test_not_the_integers(self) -> None:
        def take(fields: Fields) -> object:
            return fields.integers("key", 3, 7, most=2)

        for value in ([3, 4, 5], 3, None, {}, b"\3"):
            refuses(take, value, "an array of at most 2")
        for value in ([2], [3, 8], [True], ["3"], [[3]]):
            refuses(take, value, "an integer from 3 to 7")

    @pytest.mark.parametrize("value", [[], ["a"], ["ab", "ab"]])
    def test_texts(self, value: list[str]) -> None:
        assert fields_of(value).texts("key", 1, 2, most=2) == tuple(value)

    def test_not_the_texts(self) -> None:
        def take(fields: Fields) -> object:
            return fields.texts("key", 1, 2, most=2)

        for value in (["a", "a", "a"], "a", None):
            refuses(take, value, "an array of at most 2")
        for value in ([""], ["a", "abc"], [b"a"], [1]):
            refuses(take, value, "printable text of 1 to 2 characters")

    def test_map(self) -> None:
        fields = fields_of({"inner": 1})
        inner = fields.map("key")
        fields.finish()
        assert inner.integer("inner", 0, 9) == 1
        inner.finish()

    @pytest.mark.parametrize("value", [[], 1, None])
    def test_not_the_map(self, value: object) -> None:
        refuses(lambda fields: fields.map("key"), value, "a map")

    def test_missing(self) -> None:
        fields = fields_of(1)
        with pytest.raises(RemoteProtocolError, match="field other is missing"):
            fields.integer("other", 0, 9)

    def test_strictness_covers_nested_maps(self) -> None:
        fields_of({"inner": 1}, strict=False).map("key").finish()
        inner = fields_of({"inner": 1}, strict=True).map("key")
        with pytest.raises(RemoteProtocolError, match="1 unknown field"):
            inner.finish()

    def test_unknown(self) -> None:
        fields_of(1, strict=False).finish()
        with pytest.raises(RemoteProtocolError, match="1 unknown field"):
            fields_of(1, strict=True).finish()


class TestEncode:
    def test_round_trip(self) -> None:
        fields = decode_map(encode_map({"a": (1, 2), "b": b"x"}), strict=True)
        assert fields.integers("a", 1, 2, most=2) == (1, 2)
        assert fields.octets("b", 1, 1) == b"x"
        fields.finish()

    def test_size_at_the_edge(self) -> None:
        assert len(encode_map({"a": bytes(MAX_BODY - 6)})) == MAX_BODY
        with pytest.raises(LocalProtocolError, match="4097 bytes"):
            encode_map({"a": bytes(MAX_BODY - 5)})


@given(st.text(max_size=30), st.integers(0, 30))
def test_printable_always_fits_a_text_field(text: str, longest: int) -> None:
    made = printable(text, longest)
    # A lone surrogate is not printable, so whatever comes out can be encoded.
    assert fields_of(made).text("key", 0, longest) == made
    if text.isprintable():
        assert made == text[:longest]


def test_printable_replaces() -> None:
    assert printable("no\nspace\tleft \ud800", 99) == "no space left  "
