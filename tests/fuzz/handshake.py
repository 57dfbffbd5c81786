"""Both sides of a handshake, each against a peer that may say anything at any step.

The peer is honest up to a place that the input chooses, so that what lies behind the keys is
reached too: what messages 2 and 3 carry, and the first record.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Coroutine, Generator
from typing import Any, Final, TypeVar, cast
from unittest import mock

from protocol.errors import LinkDenied, LinkLost, RemoteProtocolError
from protocol.transport.handshake import Arrival, initiate, respond
from protocol.transport.link import Link
from protocol.wire.hello import (
    MAX_HELLO,
    PREFACE_SIZE,
    VERSION,
    Hello,
    Limits,
    Welcome,
    encode_preface,
)
from protocol.wire.identifiers import InstanceId, RelayKey
from protocol.wire.noise import KEY_SIZE, TAG_SIZE, Handshake, StaticKey, Suite
from protocol.wire.record import RECORD_OVERHEAD, Sealer
from tests.fuzz.choices import Choices

T = TypeVar("T")

RELAY: Final = StaticKey.from_private(bytes(range(32)))
AGENT: Final = StaticKey.from_private(bytes(range(32, 64)))
# What a relay holds whose key was rotated; the agent knows it by the former one.
_STATICS: Final = (StaticKey.from_private(bytes(range(128, 160))), RELAY)
# In the place of those that a handshake makes, so that an input does the same each time.
EPHEMERAL: Final = StaticKey.from_private(bytes(range(64, 96)))
PEERS_EPHEMERAL: Final = StaticKey.from_private(bytes(range(96, 128)))
HELLO: Final = Hello(
    instance=InstanceId(bytes(16)),
    epoch=1,
    software="",
    features=(),
    limits=Limits(streams=1, stream_window=16384, session_window=16384),
)
_LENGTH: Final = struct.Struct(">H")
_MESSAGE_1: Final = KEY_SIZE + TAG_SIZE
# All that an agent says to one that has not proved to be its relay.
_BEFORE_MESSAGE_2: Final = PREFACE_SIZE + _LENGTH.size + _MESSAGE_1
# Is sent what the other side said, gives what comes next, and returns to close.
Peer = Generator[bytes, bytes, None]


class FakeSocket:
    """Never full and never empty: where there is nothing more to read, it is closed."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._waiting = next(peer)
        self._unheard = b""
        self.sent = b""
        self.taken = 0

    def setblocking(self, _: object) -> None: ...

    def setsockopt(self, *_: object) -> None: ...

    def send(self, data: memoryview) -> int:
        self.sent += data
        self._unheard += data
        return len(data)

    def recv_into(self, buffer: memoryview) -> int:
        while not self._waiting:
            unheard, self._unheard = self._unheard, b""
            try:
                self._waiting = self._peer.send(unheard)
            except StopIteration:
                return 0
        size = min(len(buffer), len(self._waiting))
        buffer[:size] = self._waiting[:size]
        self._waiting = self._waiting[size:]
        self.taken += size
        return size


def fuzz_one(data: bytes) -> None:
    """Whose side is tried, the suite, and what the peer does at each step."""
    choices = Choices(data)
    suite = Suite.CHACHAPOLY if choices.flag() else Suite.AESGCM
    if choices.flag():
        _try_relay(choices, suite)
    else:
        _try_agent(choices, suite)


def _ephemeral() -> StaticKey:
    return EPHEMERAL


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """With a socket that never blocks, nothing ever waits."""
    with mock.patch.object(StaticKey, "generate", _ephemeral):
        try:
            coroutine.send(None)
        except StopIteration as done:
            return cast(T, done.value)
    raise AssertionError("it waits, though bytes are there")


def _framed(message: bytes) -> bytes:
    return _LENGTH.pack(len(message)) + message


def _spoiled(choices: Choices, said: bytes) -> bytes:
    match choices.below(8):
        case 1:
            at = choices.number(2) % len(said)
            return said[:at] + bytes([said[at] ^ choices.number()]) + said[at + 1 :]
        case 2:
            return choices.framed()
        case 3:
            return said[: choices.number(2) % len(said)]
        case 4:
            return said + choices.framed()
    return said


# The relay's side


def _try_relay(choices: Choices, suite: Suite) -> None:
    said: list[bytes] = []
    sock = FakeSocket(_agent(choices, suite, said))
    verified: list[bool] = []

    def on_verified() -> None:
        verified.append(True)

    arrival = None
    with contextlib.suppress(RemoteProtocolError, EOFError):
        arrival = _run(respond(cast(socket.socket, sock), statics=_STATICS, verified=on_verified))
    assert sock.taken <= MAX_HELLO, "a stranger made it read more than 4 KiB"
    assert len(sock.sent) <= _LENGTH.size + _MESSAGE_1 + 2048
    genuine = sock.taken >= _BEFORE_MESSAGE_2 and said[0][:_BEFORE_MESSAGE_2] == said[1]
    assert bool(verified) == bool(sock.sent) == genuine, "it answers only who knows its key"
    if arrival is not None:
        _check_arrival(arrival, said[2])


def _check_arrival(arrival: Arrival, hello: bytes) -> None:
    assert arrival.agent_key == AGENT.public
    assert arrival.relay_key == RELAY.public
    assert arrival.hello == Hello.decode(hello)


def _agent(choices: Choices, suite: Suite, said: list[bytes]) -> Peer:
    """Notes what was said at first, what should have been, and the hello."""
    preface = encode_preface(suite, choices.number() if choices.flag() else VERSION)
    noise = Handshake(
        suite=suite,
        prologue=preface,
        initiator=True,
        static=AGENT,
        remote_static=RELAY.public,
        ephemeral=PEERS_EPHEMERAL,
    )
    honest = preface + _framed(noise.write_message())
    said += [_spoiled(choices, honest), honest]
    heard = yield said[0]
    if heard:
        noise.read_message(heard[_LENGTH.size :])
        said.append(choices.framed() or HELLO.encode())
        yield _spoiled(choices, _framed(noise.write_message(said[2])))


# The agent's side


def _try_agent(choices: Choices, suite: Suite) -> None:
    said: list[bytes] = []
    sock = FakeSocket(_relay(choices, suite, said))
    asked: list[bool] = []

    def hello() -> Hello:
        asked.append(True)
        return HELLO

    try:
        link, welcome = _run(
            initiate(
                cast(socket.socket, sock),
                suite=suite,
                static=AGENT,
                relay_key=RelayKey(RELAY.public),
                hello=hello,
            )
        )
    except LinkDenied as denied:
        assert 1 <= denied.code <= 255
        assert denied.reason.isprintable()
        assert 0 <= denied.retry_after <= 86_400
    except LinkLost:
        pass
    else:
        assert isinstance(link, Link)
        assert welcome == Welcome.decode(said[3][5:])
    # A byte too many behind a genuine message 2 is the first record's business.
    genuine = len(said) > 1 and said[0].startswith(said[1])
    denied_early = len(said) > 2 and said[2] != b""
    assert bool(asked) == (genuine and not denied_early), "it says who it is to its relay alone"
    assert asked or len(sock.sent) == _BEFORE_MESSAGE_2


def _relay(choices: Choices, suite: Suite, said: list[bytes]) -> Peer:
    """Notes message 2 as it was said and as it should have been, its payload, and the frame."""
    heard = yield b""
    noise = Handshake(
        suite=suite,
        prologue=heard[:PREFACE_SIZE],
        initiator=False,
        static=RELAY,
        ephemeral=PEERS_EPHEMERAL,
    )
    noise.read_message(heard[PREFACE_SIZE + _LENGTH.size :])
    denial = choices.framed()
    honest = _framed(noise.write_message(denial))
    said += [_spoiled(choices, honest), honest, denial]
    heard = yield said[0]
    if heard:
        noise.read_message(heard[_LENGTH.size :])
        sealer = Sealer(noise.split()[0])
        said.append(choices.framed().ljust(5, b"\0"))
        record = bytearray(len(said[3]) + RECORD_OVERHEAD)
        sealer.seal_into(said[3], memoryview(record))
        yield _spoiled(choices, bytes(record))
