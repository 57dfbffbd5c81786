"""Frames. Wire bytes are written by hand from docs/protocol.md, never by our encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError
from protocol.wire import frame as wire
from protocol.wire.frame import CloseCode, FrameType, Open, Publish, Published, Refused, Unpublish

PUBLISH = bytes.fromhex("01 00000000 83 a26964 07 a773657276696365 a3737368 a4706f7274 cd2b67")
PUBLISHED = bytes.fromhex("02 00000000 82 a26964 07 a4706f7274 cd2b67")
REFUSED = bytes.fromhex("03 00000000 83 a26964 07 a4636f6465 01 a6726561736f6e a462757379")
UNPUBLISH = bytes.fromhex("04 00000000 81 a26964 07")
OPEN = bytes.fromhex("05 00000005 83 a26964 07 a4686f7374 a33a3a31 a4706f7274 cd1267")
WINDOW = bytes.fromhex("07 00000005 00020000")
FIN = bytes.fromhex("08 00000005")
RESET = bytes.fromhex("09 00000005 02")
ACK = bytes.fromhex("43 00000000 0000000000000102")
PING = bytes.fromhex("44 00000000 0000000000000102 00000000000f4240")
PONG = bytes.fromhex("45 00000000 0000000000000102 00000000000f4240")
CLOSE = bytes.fromhex("46 00000000 02")

ENCODED = [
    (Publish(publication=7, service="ssh", port=11111).encode(), PUBLISH),
    (Published(publication=7, port=11111).encode(), PUBLISHED),
    (Refused(publication=7, code=1, reason="busy").encode(), REFUSED),
    (Unpublish(publication=7).encode(), UNPUBLISH),
    (Open(publication=7, source=("::1", 4711)).encode(5), OPEN),
    (wire.window(5, 0x20000), WINDOW),
    (wire.fin(5), FIN),
    (wire.reset(5, 2), RESET),
    (wire.ack(0x102), ACK),
    (wire.ping(0x102, 1_000_000), PING),
    (wire.pong(0x102, 1_000_000), PONG),
    (wire.close(CloseCode.RESTARTING), CLOSE),
    (wire.link_frame(FrameType.WELCOME, b"\x80"), bytes.fromhex("41 00000000 80")),
    (wire.link_frame(FrameType.DENIED, b"\x80"), bytes.fromhex("42 00000000 80")),
]

Decoder = Callable[[memoryview], object]

# Of whole frames, as `Session` calls them.
DECODERS: dict[bytes, tuple[Decoder, object]] = {
    PUBLISH: (
        lambda frame: Publish.decode(frame[5:]),
        Publish(publication=7, service="ssh", port=11111),
    ),
    PUBLISHED: (
        lambda frame: Published.decode(frame[5:]),
        Published(publication=7, port=11111),
    ),
    REFUSED: (
        lambda frame: Refused.decode(frame[5:]),
        Refused(publication=7, code=1, reason="busy"),
    ),
    UNPUBLISH: (lambda frame: Unpublish.decode(frame[5:]), Unpublish(publication=7)),
    OPEN: (
        lambda frame: Open.decode(frame[5:]),
        Open(publication=7, source=("::1", 4711)),
    ),
    WINDOW: (wire.decode_u32, 0x20000),
    FIN: (wire.decode_empty, None),
    RESET: (wire.decode_u8, 2),
    ACK: (wire.decode_u64, 0x102),
    PING: (wire.decode_u64_u64, (0x102, 1_000_000)),
    PONG: (wire.decode_u64_u64, (0x102, 1_000_000)),
    CLOSE: (wire.decode_close, CloseCode.RESTARTING),
}
BY_TYPE = {FrameType(frame[0]).name: frame for frame in DECODERS}


@pytest.mark.parametrize(("ours", "by_hand"), ENCODED)
def test_encoders_write_what_the_document_says(ours: bytes, by_hand: bytes) -> None:
    assert ours == by_hand


@pytest.mark.parametrize("name", BY_TYPE)
def test_decoders_read_what_the_document_says(name: str) -> None:
    frame = BY_TYPE[name]
    decode, expected = DECODERS[frame]
    assert decode(memoryview(frame)) == expected


@pytest.mark.parametrize("name", BY_TYPE)
def test_every_frame_cut_short_is_refused(name: str) -> None:
    frame = BY_TYPE[name]
    decode, _ = DECODERS[frame]
    for size in range(wire.HEADER_SIZE, len(frame)):
        with pytest.raises(RemoteProtocolError):
            decode(memoryview(frame)[:size])


@pytest.mark.parametrize("name", BY_TYPE)
def test_every_frame_with_trailing_bytes_is_refused(name: str) -> None:
    frame = BY_TYPE[name]
    decode, _ = DECODERS[frame]
    for tail in (b"\x00", b"\xc0", frame):
        with pytest.raises(RemoteProtocolError):
            decode(memoryview(frame + tail))


@given(name=st.sampled_from(sorted(BY_TYPE)), body=st.binary(max_size=80))
def test_decoders_of_arbitrary_bodies_raise_only_the_peers_error(name: str, body: bytes) -> None:
    frame = BY_TYPE[name][: wire.HEADER_SIZE] + body
    with contextlib.suppress(RemoteProtocolError):
        DECODERS[BY_TYPE[name]][0](memoryview(frame))


@given(name=st.sampled_from(sorted(BY_TYPE)), place=st.integers(5, 60), byte=st.integers(0, 255))
def test_decoders_of_one_wrong_byte_raise_only_the_peers_error(
    name: str, place: int, byte: int
) -> None:
    frame = bytearray(BY_TYPE[name])
    if place < len(frame):
        frame[place] = byte
    with contextlib.suppress(RemoteProtocolError):
        DECODERS[BY_TYPE[name]][0](memoryview(frame))


def test_split_gives_type_and_stream() -> None:
    assert wire.split(memoryview(FIN)) == (FrameType.FIN, 5)
    assert wire.split(memoryview(b"\xff\xff\xff\xff\xff")) == (255, wire.MAX_STREAM)


@pytest.mark.parametrize("size", range(5))
def test_a_frame_shorter_than_its_header_is_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="shorter"):
        wire.split(memoryview(FIN)[:size])


def test_a_close_code_of_a_later_version_is_none() -> None:
    assert wire.decode_close(memoryview(bytes.fromhex("46 00000000 01"))) is CloseCode.GONE
    assert wire.decode_close(memoryview(bytes.fromhex("46 00000000 03"))) is None
    assert wire.decode_close(memoryview(bytes.fromhex("46 00000000 00"))) is None


def body(text: str) -> memoryview:
    return memoryview(bytes.fromhex(text))


ID, PORT, CODE = "a26964", "a4706f7274", "a4636f6465"
SERVICE, REASON, HOST = "a773657276696365", "a6726561736f6e", "a4686f7374"

ILLEGAL: dict[str, tuple[type, str]] = {
    "publish: not a map": (Publish, "93 07 a3737368 cd2b67"),
    "publish: empty": (Publish, ""),
    "publish: id missing": (Publish, f"82 {SERVICE} a3737368 {PORT} cd2b67"),
    "publish: id 0": (Publish, f"83 {ID} 00 {SERVICE} a3737368 {PORT} cd2b67"),
    "publish: id beyond 32 bits": (
        Publish,
        f"83 {ID} cf0000000100000000 {SERVICE} a3737368 {PORT} cd2b67",
    ),
    "publish: id negative": (Publish, f"83 {ID} ff {SERVICE} a3737368 {PORT} cd2b67"),
    "publish: id true": (Publish, f"83 {ID} c3 {SERVICE} a3737368 {PORT} cd2b67"),
    "publish: id float": (Publish, f"83 {ID} ca3f800000 {SERVICE} a3737368 {PORT} cd2b67"),
    "publish: service empty": (Publish, f"83 {ID} 07 {SERVICE} a0 {PORT} cd2b67"),
    "publish: service too long": (
        Publish,
        f"83 {ID} 07 {SERVICE} d941 {'61' * 65} {PORT} cd2b67",
    ),
    "publish: service bytes": (Publish, f"83 {ID} 07 {SERVICE} c403737368 {PORT} cd2b67"),
    "publish: service with a line end": (
        Publish,
        f"83 {ID} 07 {SERVICE} a373730a {PORT} cd2b67",
    ),
    "publish: service not UTF-8": (Publish, f"83 {ID} 07 {SERVICE} a37373ff {PORT} cd2b67"),
    "publish: port 0": (Publish, f"83 {ID} 07 {SERVICE} a3737368 {PORT} 00"),
    "publish: port 65536": (Publish, f"83 {ID} 07 {SERVICE} a3737368 {PORT} ce00010000"),
    "publish: unknown field": (
        Publish,
        f"84 {ID} 07 {SERVICE} a3737368 {PORT} cd2b67 a178 01",
    ),
    "publish: field twice": (
        Publish,
        f"84 {ID} 07 {ID} 07 {SERVICE} a3737368 {PORT} cd2b67",
    ),
    "published: port missing": (Published, f"81 {ID} 07"),
    "published: port 0": (Published, f"82 {ID} 07 {PORT} 00"),
    "published: unknown field": (Published, f"83 {ID} 07 {PORT} 01 a178 01"),
    "refused: code 0": (Refused, f"83 {ID} 07 {CODE} 00 {REASON} a0"),
    "refused: code 256": (Refused, f"83 {ID} 07 {CODE} cd0100 {REASON} a0"),
    "refused: reason too long": (
        Refused,
        f"83 {ID} 07 {CODE} 01 {REASON} da0101 {'61' * 257}",
    ),
    "refused: reason missing": (Refused, f"82 {ID} 07 {CODE} 01"),
    "refused: unknown field": (Refused, f"84 {ID} 07 {CODE} 01 {REASON} a0 a178 01"),
    "unpublish: id 0": (Unpublish, f"81 {ID} 00"),
    "unpublish: unknown field": (Unpublish, f"82 {ID} 07 a178 01"),
    "open: id 0": (Open, f"83 {ID} 00 {HOST} a33a3a31 {PORT} cd1267"),
    "open: host empty": (Open, f"83 {ID} 07 {HOST} a0 {PORT} cd1267"),
    "open: host too long": (Open, f"83 {ID} 07 {HOST} d941 {'61' * 65} {PORT} cd1267"),
    "open: port 65536": (Open, f"83 {ID} 07 {HOST} a33a3a31 {PORT} ce00010000"),
    "open: port text": (Open, f"83 {ID} 07 {HOST} a33a3a31 {PORT} a131"),
    "open: unknown field": (Open, f"84 {ID} 07 {HOST} a33a3a31 {PORT} cd1267 a178 01"),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_illegal_bodies_are_refused(case: str) -> None:
    kind, text = ILLEGAL[case]
    with pytest.raises(RemoteProtocolError):
        kind.decode(body(text))  # type: ignore[attr-defined]  # one of the five body classes


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Publish, f"83 {ID} ceffffffff {SERVICE} d940 {'61' * 64} {PORT} cdffff"),
        (Publish, f"83 {PORT} 01 {SERVICE} a161 {ID} 01"),
        (Refused, f"83 {ID} 01 {CODE} ccff {REASON} da0100 {'61' * 256}"),
        (Refused, f"83 {ID} 01 {CODE} 01 {REASON} a0"),
        (Open, f"83 {ID} 01 {HOST} d940 {'61' * 64} {PORT} 00"),
    ],
)
def test_bodies_at_their_bounds_are_taken(kind: type, text: str) -> None:
    kind.decode(body(text))  # type: ignore[attr-defined]  # one of the five body classes


def test_a_reason_is_made_fit_for_one_log_line() -> None:
    encoded = Refused(publication=1, code=4, reason="no\nway" + "x" * 300).encode()
    refused = Refused.decode(memoryview(encoded)[5:])
    assert refused.reason == ("no way" + "x" * 300)[:256]


publications = st.integers(1, 2**32 - 1)
texts = st.text(
    st.characters(exclude_categories=("C", "Z"), include_characters=" "), min_size=1, max_size=64
)


@given(publication=publications, service=texts, port=st.integers(1, 65535))
def test_publish_comes_back(publication: int, service: str, port: int) -> None:
    publish = Publish(publication=publication, service=service, port=port)
    assert Publish.decode(memoryview(publish.encode())[5:]) == publish


@given(
    stream=st.integers(1, 2**32 - 1),
    publication=publications,
    host=texts,
    port=st.integers(0, 65535),
)
def test_open_comes_back(stream: int, publication: int, host: str, port: int) -> None:
    opened = Open(publication=publication, source=(host, port))
    encoded = memoryview(opened.encode(stream))
    assert wire.split(encoded) == (FrameType.OPEN, stream)
    assert Open.decode(encoded[5:]) == opened
