from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import DenialCode, LocalProtocolError, RemoteProtocolError
from protocol.wire.hello import (
    MAX_HELLO,
    PREFACE_SIZE,
    VERSION,
    Denial,
    Hello,
    Limits,
    Preface,
    Resume,
    Welcome,
    decode_preface,
    encode_preface,
)
from protocol.wire.noise import Handshake, StaticKey, Suite

KIB, MIB = 1024, 1024 * 1024
U64 = 2**64 - 1

LIMITS = {"streams": 4096, "stream_window": 256 * KIB, "session_window": 16 * MIB}
RESUME = {"session": bytes(16), "received": 7}
# Written by hand, not by our encoders.
BODIES: dict[type[Any], dict[str, Any]] = {
    Hello: {
        "instance": bytes(range(16)),
        "epoch": 3,
        "software": "ssh-relay 0.1.0",
        "features": ["one", "two"],
        "limits": LIMITS,
        "resume": RESUME,
        "token": bytes(16),
        "successor": bytes(32),
    },
    Welcome: {
        "session": bytes(range(16)),
        "resumed": True,
        "received": 9,
        "limits": LIMITS,
        "name": "home",
        "ports": [11111, 443],
        "features": [],
        "software": "",
        "successor": bytes(32),
        "agent_key": bytes(32),
        "hosts": ["vps.example.net:7022", "[2001:db8::1]:443"],
    },
    Denial: {"code": 5, "reason": "another process is attached", "retry_after": 30.0},
}
OPTIONAL = {"resume", "token", "successor", "agent_key", "hosts"}
each_body = pytest.mark.parametrize("cls", list(BODIES))

# (class, path to the field, values at the edges, values beyond them or of another type)
FIELDS: list[tuple[type[Any], str, list[Any], list[Any]]] = [
    (Hello, "instance", [b"\xff" * 16], [bytes(15), bytes(17), "a" * 16, None]),
    (Hello, "epoch", [0, U64], [-1, 1.0, True, None]),
    (Hello, "software", ["", "s" * 64], ["s" * 65, "a\nb", b"s", None]),
    (
        Hello,
        "features",
        [[], ["f"] * 32, ["f" * 32]],
        [["f"] * 33, ["f" * 33], [""], [1], "f", None],
    ),
    (Hello, "limits", [], [None, [], 1]),
    (Hello, "limits.streams", [1, 65535], [0, 65536, None]),
    (Hello, "limits.stream_window", [16 * KIB, 16 * MIB], [16 * KIB - 1, 16 * MIB + 1, None]),
    (Hello, "limits.session_window", [16 * KIB, 256 * MIB], [16 * KIB - 1, 256 * MIB + 1, None]),
    (Hello, "resume", [], [None, [], 1]),
    (Hello, "resume.session", [b"\xff" * 16], [bytes(15), bytes(17), None]),
    (Hello, "resume.received", [0, U64], [-1, None]),
    (Hello, "token", [bytes(16), bytes(64)], [bytes(15), bytes(65), "t" * 16, None]),
    (Hello, "successor", [b"\xff" * 32], [bytes(31), bytes(33), "k" * 32, None]),
    (Welcome, "session", [b"\xff" * 16], [bytes(15), bytes(17), None]),
    (Welcome, "resumed", [True, False], [0, 1, None]),
    (Welcome, "received", [0, U64], [-1, None]),
    (Welcome, "limits.streams", [1, 65535], [0, 65536, None]),
    (Welcome, "name", ["n", "n" * 64], ["", "n" * 65, "a\0", None]),
    (Welcome, "ports", [[], [1], [65535] * 256], [[0], [65536], [1] * 257, ["1"], None]),
    (Welcome, "features", [[], ["f"] * 32], [["f"] * 33, [""], None]),
    (Welcome, "software", ["", "s" * 64], ["s" * 65, None]),
    (
        Welcome,
        "hosts",
        [[], ["h:1"] * 8, ["h" * 261]],
        [["h:1"] * 9, ["h" * 262], [""], "h:1", None],
    ),
    (Welcome, "successor", [b"\xff" * 32], [bytes(31), bytes(33), "k" * 32, None]),
    (Welcome, "agent_key", [b"\xff" * 32], [bytes(31), bytes(33), "k" * 32, None]),
    (Welcome, "clock", [0, U64], [-1, 0.5, None]),
    (Denial, "code", [1, 255], [0, 256, None]),
    (Denial, "reason", ["", "r" * 256], ["r" * 257, "a\x1b[2J", None]),
    (Denial, "retry_after", [0, 0.0, 0.5, 86400.0], [-0.1, 86400.5, float("nan"), None]),
]
EDGES = [
    pytest.param(cls, path, value, id=f"{cls.__name__}.{path}-{number}")
    for cls, path, allowed, _ in FIELDS
    for number, value in enumerate(allowed)
]
BEYOND = [
    pytest.param(cls, path, value, id=f"{cls.__name__}.{path}-{number}")
    for cls, path, _, refused in FIELDS
    for number, value in enumerate(refused)
]


def changed(cls: type[Any], path: str, value: object) -> dict[str, Any]:
    body = dict(BODIES[cls])
    outer, _, inner = path.partition(".")
    body[outer] = {**body[outer], inner: value} if inner else value
    return body


def plain(value: object) -> object:
    """A decoded value as what msgpack would have made of the body."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, tuple) else value


identifiers = st.binary(min_size=16, max_size=16)
counts = st.integers(0, U64)
# Features are short ASCII words; a hello full of other text would not fit the handshake.
features = st.lists(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=32),
    max_size=32,
).map(tuple)


def printable_text(shortest: int, longest: int) -> st.SearchStrategy[str]:
    return st.text(
        st.characters(codec="utf-8").filter(str.isprintable), min_size=shortest, max_size=longest
    )


limits = st.builds(
    Limits,
    streams=st.integers(1, 65535),
    stream_window=st.integers(16 * KIB, 16 * MIB),
    session_window=st.integers(16 * KIB, 256 * MIB),
)
hellos = st.builds(
    Hello,
    instance=identifiers,
    epoch=counts,
    software=printable_text(0, 64),
    features=features,
    limits=limits,
    resume=st.none() | st.builds(Resume, session=identifiers, received=counts),
    token=st.none() | st.binary(min_size=16, max_size=64),
    successor=st.none() | st.binary(min_size=32, max_size=32),
)
welcomes = st.builds(
    Welcome,
    session=identifiers,
    resumed=st.booleans(),
    received=counts,
    limits=limits,
    name=printable_text(1, 64),
    ports=st.lists(st.integers(1, 65535), max_size=256).map(tuple),
    features=features,
    software=printable_text(0, 64),
    clock=st.none() | counts,
    successor=st.none() | st.binary(min_size=32, max_size=32),
    agent_key=st.none() | st.binary(min_size=32, max_size=32),
    hosts=st.none() | st.lists(st.text("abc:[]1", min_size=1, max_size=9), max_size=8).map(tuple),
)
denials = st.builds(
    Denial,
    code=st.integers(1, 255),
    reason=printable_text(0, 256),
    retry_after=st.floats(0, 86400),
)


class TestPreface:
    @pytest.mark.parametrize("suite", list(Suite))
    @pytest.mark.parametrize("version", [0, VERSION, 255])
    def test_round_trip(self, suite: Suite, version: int) -> None:
        raw = encode_preface(suite, version)
        assert raw == b"SRLY" + bytes([version, suite])
        assert len(raw) == PREFACE_SIZE == 6
        for data in (raw, bytearray(raw), memoryview(raw)):
            preface = decode_preface(data)
            assert preface == Preface(version, suite, raw)
            assert type(preface.raw) is bytes

    def test_frozen_for_ever(self) -> None:
        assert encode_preface(Suite.AESGCM) == b"SRLY\x01\x01"
        assert encode_preface(Suite.CHACHAPOLY) == b"SRLY\x01\x02"

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "0 bytes, expected 6"),
            (b"SRLY\x01", "5 bytes, expected 6"),
            (b"SRLY\x01\x01\x00", "7 bytes, expected 6"),
            (b"SSH-2.", "wrong magic"),
            (b"srly\x01\x01", "wrong magic"),
            (b"SRLY\x01\x00", "unknown cipher suite 0"),
            (b"SRLY\x02\x03", "unknown cipher suite 3"),
        ],
    )
    def test_refused(self, data: bytes, reason: str) -> None:
        with pytest.raises(RemoteProtocolError, match=reason):
            decode_preface(data)

    @given(st.binary(max_size=8) | st.binary(max_size=2).map(b"SRLY".__add__))
    def test_arbitrary_bytes(self, data: bytes) -> None:
        with contextlib.suppress(RemoteProtocolError):
            preface = decode_preface(data)
            assert encode_preface(preface.suite, preface.version) == data

    def test_another_version_is_told_apart_from_a_wrong_key(self) -> None:
        """The answer that an agent of version 9 gets from this relay."""
        relay = StaticKey.generate()
        raw = encode_preface(Suite.AESGCM, 9)
        initiator = Handshake(
            suite=Suite.AESGCM,
            prologue=raw,
            initiator=True,
            static=StaticKey.generate(),
            remote_static=relay.public,
        )
        preface = decode_preface(raw)
        responder = Handshake(
            suite=preface.suite, prologue=preface.raw, initiator=False, static=relay
        )
        responder.read_message(initiator.write_message())
        denial = Denial(code=DenialCode.VERSION, reason="this relay speaks version 1")
        answer = initiator.read_message(responder.write_message(denial.encode()))
        assert Denial.decode(answer) == denial


@each_body
class TestEveryBody:
    def test_decodes_what_is_written_by_hand(self, cls: type[Any]) -> None:
        decoded = cls.decode(msgpack.packb(BODIES[cls]))
        assert plain(dataclasses.asdict(decoded)) == BODIES[cls]

    def test_encodes_it_again(self, cls: type[Any]) -> None:
        decoded = cls.decode(msgpack.packb(BODIES[cls]))
        assert msgpack.unpackb(decoded.encode()) == BODIES[cls]

    def test_every_field_is_needed(self, cls: type[Any]) -> None:
        for key in BODIES[cls].keys() - OPTIONAL:
            body = {name: value for name, value in BODIES[cls].items() if name != key}
            with pytest.raises(RemoteProtocolError, match=f"{key} is missing"):
                cls.decode(msgpack.packb(body))

    def test_unknown_keys_are_ignored(self, cls: type[Any]) -> None:
        expected = cls.decode(msgpack.packb(BODIES[cls]))
        body = {**BODIES[cls], "new": [{"x": 1}]}
        for key in ("limits", "resume"):
            if key in body:
                body[key] = {**body[key], "new": 1}
        assert cls.decode(msgpack.packb(body)) == expected

    def test_cut_at_every_length_and_trailing_bytes(self, cls: type[Any]) -> None:
        data = msgpack.packb(BODIES[cls])
        for broken in [data[:size] for size in range(len(data))] + [data + b"\xc0", data + data]:
            with pytest.raises(RemoteProtocolError):
                cls.decode(broken)

    @given(data=st.binary(max_size=100))
    def test_arbitrary_bytes(self, cls: type[Any], data: bytes) -> None:
        with pytest.raises(RemoteProtocolError):
            cls.decode(data)

    @given(position=st.integers(0, 1000), byte=st.integers(0, 255))
    def test_a_changed_byte(self, cls: type[Any], position: int, byte: int) -> None:
        """Nearly right is what finds the checks behind the first ones."""
        data = bytearray(msgpack.packb(BODIES[cls]))
        data[position % len(data)] = byte
        with contextlib.suppress(RemoteProtocolError):
            cls.decode(data)


@pytest.mark.parametrize(("cls", "path", "value"), EDGES)
def test_at_the_edge(cls: type[Any], path: str, value: object) -> None:
    body = changed(cls, path, value)
    assert plain(dataclasses.asdict(cls.decode(msgpack.packb(body)))) == body


@pytest.mark.parametrize(("cls", "path", "value"), BEYOND)
def test_beyond_the_edge(cls: type[Any], path: str, value: object) -> None:
    body = changed(cls, path, value)
    # The second: more elements than any body may have.
    expected = rf"field {path.rpartition('.')[2]}: expected|malformed body \(ValueError\)"
    with pytest.raises(RemoteProtocolError, match=expected):
        cls.decode(msgpack.packb(body))


@given(hellos)
def test_hello_round_trip(hello: Hello) -> None:
    assert Hello.decode(hello.encode()) == hello


@given(welcomes)
def test_welcome_round_trip(welcome: Welcome) -> None:
    assert Welcome.decode(welcome.encode()) == welcome


@given(denials)
def test_denial_round_trip(denial: Denial) -> None:
    assert Denial.decode(denial.encode()) == denial


def make_hello(**fields: Any) -> Hello:
    return dataclasses.replace(Hello.decode(msgpack.packb(BODIES[Hello])), **fields)


class TestHello:
    def test_absent_is_not_nil(self) -> None:
        encoded = make_hello(resume=None, token=None, successor=None).encode()
        assert msgpack.unpackb(encoded).keys() == BODIES[Hello].keys() - OPTIONAL
        decoded = Hello.decode(encoded)
        assert decoded.resume is None
        assert decoded.token is None

    def test_repr_keeps_the_token(self) -> None:
        assert "s3cr3t" not in repr(make_hello(token=b"s3cr3t" * 4))

    def test_the_largest_fits_what_a_relay_reads_before_it_knows_the_agent(self) -> None:
        def sent(size: int) -> int:
            agent, relay = StaticKey.generate(), StaticKey.generate()
            prologue = encode_preface(Suite.AESGCM)
            initiator = Handshake(
                suite=Suite.AESGCM,
                prologue=prologue,
                initiator=True,
                static=agent,
                remote_static=relay.public,
            )
            responder = Handshake(
                suite=Suite.AESGCM, prologue=prologue, initiator=False, static=relay
            )
            first = initiator.write_message()
            responder.read_message(first)
            initiator.read_message(responder.write_message())
            base = len(make_hello(software="").encode())
            # Nothing bounds a field when encoding, so this one stands for all.
            third = initiator.write_message(make_hello(software="s" * (size - base - 2)).encode())
            return len(prologue) + 2 + len(first) + 2 + len(third)

        largest = MAX_HELLO - 122
        assert sent(largest) == MAX_HELLO
        with pytest.raises(LocalProtocolError, match="3975 bytes"):
            sent(largest + 1)


class TestDenial:
    def test_unknown_code(self) -> None:
        code = max(DenialCode) + 1
        assert Denial.decode(Denial(code=code, reason="").encode()).code == code

    def test_leaves_the_interval_to_the_agent(self) -> None:
        assert Denial.decode(Denial(code=1, reason="").encode()).retry_after == 0.0

    def test_a_reason_of_any_origin_arrives(self) -> None:
        reason = "no\nspace\ud800" + "x" * 300
        assert Denial.decode(Denial(code=6, reason=reason).encode()).reason == (
            "no space " + "x" * 247
        )
