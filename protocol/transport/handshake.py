"""From a fresh TCP connection to a link whose two ends know each other.

    agent                                           relay
      preface, message 1 (proves it knows the relay's key) ─▶
                                       ◀─ message 2, or a close without a single byte
      message 3 (its own key; hello) ─▶
                                       ◀─ first record: WELCOME or DENIED

What each side may spend before the other has proved something is bounded: fixed lengths for the
preface and message 1, MAX_HELLO for message 3. Deadlines are the caller's.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

from protocol.errors import (
    DenialCode,
    LinkDenied,
    LinkLost,
    LocalProtocolError,
    NoAnswer,
    RemoteProtocolError,
)
from protocol.transport.link import BATCH, Link
from protocol.transport.sockets import prepare_link, receive_exactly, send_all
from protocol.wire import frame as wire
from protocol.wire.frame import HEADER_SIZE, FrameType
from protocol.wire.hello import (
    MAX_HELLO,
    PREFACE_SIZE,
    VERSION,
    Denial,
    Hello,
    Preface,
    Welcome,
    decode_preface,
    encode_preface,
)
from protocol.wire.identifiers import AgentKey, RelayKey
from protocol.wire.noise import KEY_SIZE, TAG_SIZE, Handshake, StaticKey, Suite
from protocol.wire.record import Opener, Sealer, lazy_area

# Eight full records a receive: as many as a fast link sends at once. Untouched, it takes no memory.
RECEIVE_AREA: Final = BATCH
# Everything above an opened frame is synchronous, so all links open into the same place.
_plaintext: Final = lazy_area(RECEIVE_AREA)

_LENGTH: Final = struct.Struct(">H")
# Message 1 is an ephemeral key and the tag over an empty payload.
_MESSAGE_1: Final = KEY_SIZE + TAG_SIZE
# Message 2's payload is empty or a Denial, whose reason has at most 256 characters.
_MESSAGE_2_LIMIT: Final = KEY_SIZE + TAG_SIZE + 2048
# Message 3 may use up what MAX_HELLO leaves for it.
_MESSAGE_3_LIMIT: Final = MAX_HELLO - PREFACE_SIZE - _LENGTH.size - _MESSAGE_1 - _LENGTH.size


async def initiate(
    sock: socket.socket,
    *,
    suite: Suite,
    static: StaticKey,
    relay_key: RelayKey,
    hello: Callable[[], Hello],
) -> tuple[Link, Welcome]:
    """The agent's side. `hello` is asked right before message 3, which commits to this link.

    Raises LinkDenied with the relay's reason, NoAnswer if it may not hold `relay_key`, LinkLost for
    anything else.
    """
    preface = encode_preface(suite)
    noise = Handshake(
        suite=suite, prologue=preface, initiator=True, static=static, remote_static=relay_key
    )
    try:
        prepare_link(sock)
        await send_all(sock, preface + _framed(noise.write_message()))
        try:
            answer = noise.read_message(await _receive_message(sock, _MESSAGE_2_LIMIT))
        except EOFError:
            raise NoAnswer(
                "closed without an answer: not a relay, or not the relay whose key we hold"
            ) from None
        if answer:
            raise _denied(Denial.decode(answer))
        await send_all(sock, _framed(noise.write_message(hello().encode())))
        link = _link(sock, noise)
        return link, _welcome(await link.receive_frame())
    except RemoteProtocolError as exc:
        raise LinkLost(f"the handshake failed: {exc}") from exc
    except OSError as exc:
        raise LinkLost(f"the handshake failed: {exc.strerror or exc}") from exc


class Arrival:
    """An agent that proved who it is and waits for its answer.

    `relay_key` is the one that it knows the relay by.
    """

    def __init__(
        self, link: Link, *, agent_key: AgentKey, relay_key: RelayKey, hello: Hello
    ) -> None:
        self.link = link
        self.agent_key = agent_key
        self.relay_key = relay_key
        self.hello = hello

    async def welcome(self, welcome: Welcome) -> None:
        """Raises LinkLost."""
        await self.link.send_frame(wire.link_frame(FrameType.WELCOME, welcome.encode()))

    async def deny(self, denial: Denial) -> None:
        """Raises LinkLost."""
        await self.link.send_frame(wire.link_frame(FrameType.DENIED, denial.encode()))


async def respond(
    sock: socket.socket, *, statics: Sequence[StaticKey], verified: Callable[[], None]
) -> Arrival:
    """The relay's side, up to message 3, under whichever of `statics` the agent knows.

    `verified` is called once message 1 proved genuine.

    Raises RemoteProtocolError, EOFError, OSError. Sends nothing before message 1 verifies.
    """
    prepare_link(sock)
    preface = decode_preface(await receive_exactly(sock, PREFACE_SIZE))
    first = await _receive_message(sock, _MESSAGE_1, least=_MESSAGE_1)
    static, noise = _read_first(first, preface, statics)
    verified()
    if preface.version != VERSION:
        reason = f"this relay speaks protocol version {VERSION}, the agent {preface.version}"
        denial = Denial(code=DenialCode.VERSION, reason=reason, retry_after=0.0)
        await send_all(sock, _framed(noise.write_message(denial.encode())))
        raise RemoteProtocolError(reason)
    await send_all(sock, _framed(noise.write_message()))
    hello = Hello.decode(noise.read_message(await _receive_message(sock, _MESSAGE_3_LIMIT)))
    agent_key = noise.remote_static
    if agent_key is None:
        raise LocalProtocolError("message 3 was read, yet the agent has no key")
    link = _link(sock, noise)
    return Arrival(
        link, agent_key=AgentKey(agent_key), relay_key=RelayKey(static.public), hello=hello
    )


def _read_first(
    message: bytes, preface: Preface, statics: Sequence[StaticKey]
) -> tuple[StaticKey, Handshake]:
    """Message 1 is genuine under the key that the agent knows, and under no other."""
    for static in statics:
        noise = Handshake(suite=preface.suite, prologue=preface.raw, initiator=False, static=static)
        try:
            noise.read_message(message)
        except RemoteProtocolError as exc:
            failed = exc
        else:
            return static, noise
    raise failed


def _framed(message: bytes) -> bytes:
    return _LENGTH.pack(len(message)) + message


async def _receive_message(sock: socket.socket, limit: int, *, least: int = 1) -> bytes:
    (length,) = _LENGTH.unpack(await receive_exactly(sock, _LENGTH.size))
    if not least <= length <= limit:
        raise RemoteProtocolError(f"handshake message of {length} bytes")
    return await receive_exactly(sock, length)


def _link(sock: socket.socket, noise: Handshake) -> Link:
    sending, receiving = noise.split()
    opener = Opener(receiving, capacity=RECEIVE_AREA, plaintext=_plaintext)
    return Link(sock, Sealer(sending), opener)


def _welcome(frame: bytes) -> Welcome:
    kind, _ = wire.split(memoryview(frame))
    body = frame[HEADER_SIZE:]
    if kind == FrameType.DENIED:
        raise _denied(Denial.decode(body))
    if kind != FrameType.WELCOME:
        raise RemoteProtocolError(f"frame of type {kind:#04x} instead of a welcome")
    return Welcome.decode(body)


def _denied(denial: Denial) -> LinkDenied:
    return LinkDenied(denial.code, denial.reason, denial.retry_after)
