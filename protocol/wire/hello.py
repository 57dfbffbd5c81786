"""The messages that are exchanged before a link attaches (docs/protocol.md, "Handshake").

    preface   agent → relay   magic, version, suite: in the clear, and the Noise prologue
    hello     agent → relay   payload of handshake message 3
    welcome   relay → agent   first record: the link is attached
    denial    relay → agent   first record instead of welcome; or payload of message 2 when the
                              relay does not speak the agent's version

The preface never changes. Its version is part of the Noise prologue as the agent sent it. So a
relay that does not know the version can still verify message 1, and its denial in message 2 tells
the agent that the key was right and the version was not.

The other messages are msgpack maps in which unknown keys are ignored, so that new features can be
negotiated.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, Self

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.wire.body import MAX_REASON, Fields, decode_map, encode_map, printable
from protocol.wire.identifiers import ID_SIZE, AgentKey, InstanceId, RelayKey, SessionId, Token
from protocol.wire.invitation import MAX_HOSTS
from protocol.wire.noise import KEY_SIZE, TAG_SIZE, Buffer, Suite

MAGIC: Final = b"SRLY"
VERSION: Final = 1
_PREFACE: Final = struct.Struct(">4sBB")
PREFACE_SIZE: Final = _PREFACE.size

# Bytes that an agent may send before the relay knows it, from the preface to the end of message 3.
MAX_HELLO: Final = 4096
# Of those, all but the hello: the preface, and messages 1 (e) and 3 (s) with tags and lengths.
_AROUND_HELLO: Final = PREFACE_SIZE + (2 + KEY_SIZE + TAG_SIZE) + (2 + KEY_SIZE + 2 * TAG_SIZE)

U64_MAX: Final = 2**64 - 1
MAX_TEXT: Final = 64  # characters of a name or a software version, which go into columns
MAX_FEATURES: Final = 32
MAX_FEATURE: Final = 32  # characters
MAX_PORTS: Final = 256  # of one agent, far more than it has services
MAX_HOST: Final = 261  # characters: a name of 253, a port, and the punctuation around them
MIN_TOKEN: Final = 16  # bytes: 128 bits cannot be guessed
MAX_TOKEN: Final = 64
MAX_STREAMS: Final = 65535  # open at once: one address of visitors has no more ports
MIN_WINDOW: Final = 16 * 1024  # bytes; bulk data would hardly move in less
MAX_STREAM_WINDOW: Final = 16 * 1024 * 1024
MAX_SESSION_WINDOW: Final = 256 * 1024 * 1024
# A feature of the hello: the agent only asks whether it may attach. The relay answers as usual and
# closes the link; no session is changed.
INQUIRY: Final = "inquiry"
MAX_RETRY_AFTER: Final = 86_400.0  # seconds: a denial keeps an agent away for a day at most

# Features. "rotation": the sender knows what `successor` means, in a welcome and in a hello.
ROTATION: Final = "rotation"
# "moving": the agent keeps the `hosts` of a welcome.
MOVING: Final = "moving"


@dataclass(frozen=True, slots=True)
class Preface:
    """`raw` is the preface as it was received: the Noise prologue."""

    version: int
    suite: Suite
    raw: bytes


def encode_preface(suite: Suite, version: int = VERSION) -> bytes:
    return _PREFACE.pack(MAGIC, version, suite)


def decode_preface(data: Buffer) -> Preface:
    """Read a preface of any version. Raises RemoteProtocolError for another protocol or suite."""
    if len(data) != PREFACE_SIZE:
        raise RemoteProtocolError(f"preface of {len(data)} bytes, expected {PREFACE_SIZE}")
    magic, version, suite = _PREFACE.unpack(data)
    if magic != MAGIC:
        raise RemoteProtocolError("not a relay agent (wrong magic)")
    if suite not in Suite.__members__.values():
        raise RemoteProtocolError(f"unknown cipher suite {suite}")
    return Preface(version, Suite(suite), bytes(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the sender accepts at once; windows are in bytes, and those of streams may grow."""

    streams: int
    stream_window: int
    session_window: int

    def as_map(self) -> dict[str, object]:
        return {
            "streams": self.streams,
            "stream_window": self.stream_window,
            "session_window": self.session_window,
        }

    @classmethod
    def take(cls, fields: Fields) -> Self:
        value = cls(
            streams=fields.integer("streams", 1, MAX_STREAMS),
            stream_window=fields.integer("stream_window", MIN_WINDOW, MAX_STREAM_WINDOW),
            session_window=fields.integer("session_window", MIN_WINDOW, MAX_SESSION_WINDOW),
        )
        fields.finish()
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """The session to continue, and how many of its sequenced frames the sender has received."""

    session: SessionId
    received: int

    def as_map(self) -> dict[str, object]:
        return {"session": self.session, "received": self.received}

    @classmethod
    def take(cls, fields: Fields) -> Self:
        value = cls(
            session=_session(fields),
            received=fields.integer("received", 0, U64_MAX),
        )
        fields.finish()
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The agent's process and what it supports; `epoch` counts the links of that process.

    `successor` is to be the agent's key from now on; the key of this handshake vouches for it.
    """

    instance: InstanceId
    epoch: int
    software: str
    features: tuple[str, ...]
    limits: Limits
    resume: Resume | None = None
    token: Token | None = field(default=None, repr=False)
    successor: AgentKey | None = None

    def encode(self) -> bytes:
        body: dict[str, object] = {
            "instance": self.instance,
            "epoch": self.epoch,
            "software": self.software,
            "features": self.features,
            "limits": self.limits.as_map(),
        }
        if self.resume is not None:
            body["resume"] = self.resume.as_map()
        if self.token is not None:
            body["token"] = self.token
        if self.successor is not None:
            body["successor"] = self.successor
        encoded = encode_map(body)
        if len(encoded) > MAX_HELLO - _AROUND_HELLO:
            raise LocalProtocolError(f"hello of {len(encoded)} bytes does not fit the handshake")
        return encoded

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        fields = decode_map(data, strict=False)
        value = cls(
            instance=InstanceId(fields.octets("instance", ID_SIZE, ID_SIZE)),
            epoch=fields.integer("epoch", 0, U64_MAX),
            software=fields.text("software", 0, MAX_TEXT),
            features=fields.texts("features", 1, MAX_FEATURE, most=MAX_FEATURES),
            limits=Limits.take(fields.map("limits")),
            resume=Resume.take(fields.map("resume")) if "resume" in fields else None,
            token=_token(fields),
            successor=_agent_key(fields, "successor"),
        )
        fields.finish()
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The link is attached to `session`; unless `resumed`, that is a new one.

    `name` is the agent's name at the relay, `ports` what it may publish. `successor` is the relay's
    key from now on, sent over links that were made with a key it replaces. `agent_key` is the
    successor in the hello, now that it is the agent's key. `hosts` are further addresses of the
    relay, as HOST:PORT; None from a relay that sends none.
    """

    session: SessionId
    resumed: bool
    received: int
    limits: Limits
    name: str
    ports: tuple[int, ...]
    features: tuple[str, ...]
    software: str
    clock: int | None = (
        None  # of the relay, in seconds since the epoch; sent to agents that only ask
    )
    successor: RelayKey | None = None
    agent_key: AgentKey | None = None
    hosts: tuple[str, ...] | None = None

    def encode(self) -> bytes:
        body: dict[str, object] = {
            "session": self.session,
            "resumed": self.resumed,
            "received": self.received,
            "limits": self.limits.as_map(),
            "name": self.name,
            "ports": self.ports,
            "features": self.features,
            "software": self.software,
        }
        if self.clock is not None:
            body["clock"] = self.clock
        if self.successor is not None:
            body["successor"] = self.successor
        if self.agent_key is not None:
            body["agent_key"] = self.agent_key
        if self.hosts is not None:
            body["hosts"] = self.hosts
        return encode_map(body)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        fields = decode_map(data, strict=False)
        value = cls(
            session=_session(fields),
            resumed=fields.boolean("resumed"),
            received=fields.integer("received", 0, U64_MAX),
            limits=Limits.take(fields.map("limits")),
            name=fields.text("name", 1, MAX_TEXT),
            ports=fields.integers("ports", 1, 65535, most=MAX_PORTS),
            features=fields.texts("features", 1, MAX_FEATURE, most=MAX_FEATURES),
            software=fields.text("software", 0, MAX_TEXT),
            clock=fields.integer("clock", 0, U64_MAX) if "clock" in fields else None,
            successor=_relay_key(fields, "successor"),
            agent_key=_agent_key(fields, "agent_key"),
            hosts=_hosts(fields),
        )
        fields.finish()
        return value


def _session(fields: Fields) -> SessionId:
    return SessionId(fields.octets("session", ID_SIZE, ID_SIZE))


def _token(fields: Fields) -> Token | None:
    return Token(fields.octets("token", MIN_TOKEN, MAX_TOKEN)) if "token" in fields else None


def _agent_key(fields: Fields, name: str) -> AgentKey | None:
    return AgentKey(fields.octets(name, KEY_SIZE, KEY_SIZE)) if name in fields else None


def _relay_key(fields: Fields, name: str) -> RelayKey | None:
    return RelayKey(fields.octets(name, KEY_SIZE, KEY_SIZE)) if name in fields else None


def _hosts(fields: Fields) -> tuple[str, ...] | None:
    return fields.texts("hosts", 1, MAX_HOST, most=MAX_HOSTS) if "hosts" in fields else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """Why the link may not attach; `code` is a `DenialCode`, or one that only newer relays know.

    `retry_after` is in seconds; 0 leaves the interval to the agent's own backoff.
    """

    code: int
    reason: str
    retry_after: float = 0.0

    def encode(self) -> bytes:
        reason = printable(self.reason, MAX_REASON)
        return encode_map({"code": self.code, "reason": reason, "retry_after": self.retry_after})

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        fields = decode_map(data, strict=False)
        value = cls(
            code=fields.integer("code", 1, 255),
            reason=fields.text("reason", 0, MAX_REASON),
            retry_after=fields.number("retry_after", 0.0, MAX_RETRY_AFTER),
        )
        fields.finish()
        return value
