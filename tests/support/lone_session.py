"""A session whose peer is the test: frames by hand, and what it sends in return."""

from __future__ import annotations

from protocol.session.events import (
    Event,
    StreamOpened,
)
from protocol.session.replay import ReplayCap
from protocol.session.session import Session, SessionOptions
from protocol.session.side import Side
from protocol.session.stream import End
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import HEADER_SIZE
from protocol.wire.hello import Limits
from tests.support.pair import SOURCE, Profile

PUBLISH, PUBLISHED, REFUSED, UNPUBLISH, OPEN = 1, 2, 3, 4, 5
DATA, WINDOW, FIN, RESET = 6, 7, 8, 9
WELCOME, DENIED, ACK, PING, PONG, CLOSE = 0x41, 0x42, 0x43, 0x44, 0x45, 0x46


def frame(kind: int, stream: int = 0, body: bytes = b"") -> bytes:
    return bytes([kind]) + stream.to_bytes(4, "big") + body


def u8(value: int) -> bytes:
    return value.to_bytes(1, "big")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def u64(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "big") for value in values)


def publish_body(publication: int) -> bytes:
    return b"\x83\xa2id\xce" + u32(publication) + b"\xa7service\xa3ssh\xa4port\x16"


def open_body(publication: int) -> bytes:
    return b"\x83\xa2id\xce" + u32(publication) + b"\xa4host\xa3::1\xa4port\xcd\x12\x67"


def id_port_body(publication: int) -> bytes:
    return b"\x82\xa2id\xce" + u32(publication) + b"\xa4port\x16"


def id_body(publication: int) -> bytes:
    return b"\x81\xa2id\xce" + u32(publication)


def refused_body(publication: int) -> bytes:
    return b"\x83\xa2id\xce" + u32(publication) + b"\xa4code\x01\xa6reason\xa4busy"


class Lone:
    """A session whose peer is the test."""

    def __init__(
        self,
        *,
        side: Side = Side.AGENT,
        profile: Profile | None = None,
        peer: Limits | None = None,
        cap: ReplayCap | None = None,
    ) -> None:
        profile = profile or Profile()
        self.pool = BufferPool()
        self.session = Session(
            side=side,
            options=SessionOptions(
                limits=profile.limits(),
                window_limit=profile.window_limit,
                replay_limit=profile.replay_limit,
                replay_cap=cap or ReplayCap(profile.cap_limit),
                pool=self.pool,
            ),
            peer=peer or profile.limits(),
        )
        self.now = 1000.0
        self.session.attach(0, self.now)

    @classmethod
    def agent(cls, *streams: int, profile: Profile | None = None) -> Lone:
        """An agent with publication 1, whose relay opened `streams`."""
        lone = cls(profile=profile)
        assert lone.session.publish("ssh", 22) == 1
        lone.sent()
        for stream in streams:
            assert isinstance(lone.get(frame(OPEN, stream, open_body(1))), StreamOpened)
        return lone

    def get(self, received: bytes) -> Event | None:
        return self.session.receive(memoryview(received), self.now)

    def sent(self) -> list[bytes]:
        frames = []
        while (one := self.session.next_frame(self.now)) is not None:
            frames.append(bytes(one))
        return frames

    def send(self, stream: int, data: bytes) -> bool:
        buffer = self.pool.take()
        buffer[HEADER_SIZE : HEADER_SIZE + len(data)] = data
        return not self.session.send(stream, [buffer], len(data))

    def ack_all(self) -> None:
        self.get(frame(ACK, 0, u64(self.session._outbox.replay.end)))

    def state(self, stream: int) -> tuple[End, End] | None:
        state = self.session._streams.get(stream)
        return None if state is None else (state.sending, state.receiving)


def relay_with_stream() -> Lone:
    lone = Lone(side=Side.RELAY)
    lone.get(frame(PUBLISH, 0, publish_body(1)))
    assert lone.session.open(1, SOURCE) == 1
    lone.sent()
    return lone


WIDE = Profile(stream_window=8 * 1024 * 1024, session_window=16 * 1024 * 1024)


def fill(lone: Lone, stream: int) -> None:
    while allowance := lone.session.allowance(stream):
        lone.send(stream, bytes(allowance))
        lone.sent()
