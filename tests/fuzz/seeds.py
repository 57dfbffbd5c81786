"""What the fuzzer starts from: `python -m tests.fuzz.seeds` writes corpus/TARGET anew.

Recorded from real exchanges: two sessions that serve visitors, and a handshake of each suite. The
same bytes come out each time. What a fuzzer found lies beside them, in files named found-…
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import msgpack

from protocol.errors import DenialCode, ResetCode
from protocol.session.events import Event
from protocol.session.session import Session
from protocol.session.side import Side
from protocol.wire import frame as wire
from protocol.wire.frame import HEADER_SIZE, CloseCode, FrameType
from protocol.wire.hello import Denial, Hello, Resume, Welcome, encode_preface
from protocol.wire.identifiers import InstanceId, RelayKey, SessionId, Token
from protocol.wire.invitation import Invitation
from protocol.wire.noise import Buffer, Suite
from tests.fuzz import peer
from tests.fuzz.handshake import HELLO, RELAY
from tests.fuzz.record import record_seed
from tests.support import pair
from tests.support.pair import SMALL, Pair

CORPUS: Final = Path(__file__).with_name("corpus")
Seeds = dict[str, bytes]

_WELCOME: Final = Welcome(
    session=SessionId(bytes(range(16))),
    resumed=True,
    received=7,
    limits=HELLO.limits,
    name="home",
    ports=(11111, 2201),
    features=("later",),
    software="ssh-relay 0.1.0",
)
_RETURNING: Final = Hello(
    instance=InstanceId(bytes(range(16))),
    epoch=2,
    software="ssh-relay 0.1.0",
    features=("later",),
    limits=HELLO.limits,
    resume=Resume(session=SessionId(bytes(range(16))), received=7),
    token=Token(bytes(16)),
)
_DENIAL: Final = Denial(code=DenialCode.BUSY, reason="too many", retry_after=2.5)
_INVITATION: Final = Invitation(
    hosts=(("vps.example.net", 7022), ("2001:db8::1", 443)),
    relay_key=RelayKey(RELAY.public),
    token=Token(bytes(16)),
)


class RecordedSession(Session):
    """Notes what is done to it, as the steps of `tests.fuzz.peer`."""

    def __init__(self, side: Side, **more: Any) -> None:
        super().__init__(side=side, **more)
        self.steps = bytearray([side is Side.RELAY])
        self.heard_frames: list[bytes] = []
        self._now = 1000.0

    def _note(self, step: object, *values: int | bytes) -> None:
        self.steps.append(peer.STEPS.index(step))
        for value in values:
            self.steps += value if isinstance(value, bytes) else bytes([value])

    def attach(self, peer_received: int, now: float) -> None:
        if self._acks.received or self._outbox.replay.end:
            self._note(peer._link, 0, peer_received - self._outbox.replay.base)
        super().attach(peer_received, now)

    def receive(self, frame: memoryview, now: float) -> Event | None:
        self._pass_time(now)
        self.heard_frames.append(bytes(frame))
        self._note(peer._raw, len(frame).to_bytes(2, "big") + bytes(frame))
        return super().receive(frame, now)

    def next_frame(self, now: float) -> Buffer | None:
        self._pass_time(now)
        frame = super().next_frame(now)
        if frame is not None:
            self._note(peer._flush, 1)
        return frame

    def _pass_time(self, now: float) -> None:
        if now > self._now:
            self._note(peer._tick, round((now - self._now) * 100).to_bytes(2, "big"))
            self._now = now

    def publish(self, service: str, port: int) -> int:
        self._note(peer._own_publication, 1, (port - 1) % 256)
        return super().publish(service, port)

    def unpublish(self, publication: int) -> None:
        self._note(peer._own_publication, 0, publication - 1)
        super().unpublish(publication)

    def published(self, publication: int, port: int) -> None:
        self._note(peer._own_publication, 0, publication - 1)
        super().published(publication, port)

    def open(self, publication: int, source: tuple[str, int]) -> int | None:
        self._note(peer._own_publication, 2, publication - 1)
        return super().open(publication, source)

    def send(self, stream: int, buffers: list[bytearray], count: int) -> list[bytearray]:
        self._note(peer._own_send, stream, count.to_bytes(2, "big"))
        return super().send(stream, buffers, count)

    def finish(self, stream: int) -> None:
        self._note(peer._own_end, 0, stream)
        super().finish(stream)

    def reset(self, stream: int, code: ResetCode) -> None:
        self._note(peer._own_end, 1, stream)
        super().reset(stream, code)

    def consumed(self, stream: int, count: int, *, kept_up: bool) -> None:
        self._note(peer._own_consume, stream, count.to_bytes(2, "big"), kept_up)
        super().consumed(stream, count, kept_up=kept_up)

    def fin_delivered(self, stream: int) -> None:
        self._note(peer._own_consume, stream, bytes(3))
        super().fin_delivered(stream)


def _record() -> list[RecordedSession]:
    """A visitor who types, one who copies while the link is cut, one who is reset."""
    with mock.patch.object(pair, "Session", RecordedSession):
        both = Pair(SMALL, SMALL)
    relay, agent = both.sides
    typing, copying = both.opened(), both.open(1)
    assert copying is not None
    relay.session.published(1, 11111)
    both.settle()
    both.write(relay, typing, 5)
    both.write(agent, typing, 5)
    both.write(agent, copying, 1500)
    both.deliver(relay, 2)
    both.resume()
    both.settle()
    for side in (relay, agent, relay):
        for stream in (typing, copying):
            both.read(side, stream, 1500)
        both.settle()
    both.finish(agent, copying)
    both.reset(relay, copying)
    agent.session.unpublish(1)
    both.finish(relay, typing)
    agent.session.probe(both.now)
    both.bring_to_an_end()
    sessions = [side.session for side in both.sides]
    return [session for session in sessions if isinstance(session, RecordedSession)]


def _frames(sessions: list[RecordedSession]) -> Seeds:
    """The first of each type, and those that the exchange has none of."""
    frames = [frame for session in sessions for frame in session.heard_frames]
    frames += [
        wire.Refused(publication=1, code=1, reason="port 11111 is held by nginx").encode(),
        wire.close(CloseCode.RESTARTING),
        wire.link_frame(FrameType.WELCOME, _WELCOME.encode()),
        wire.link_frame(FrameType.DENIED, _DENIAL.encode()),
    ]
    return {FrameType(frame[0]).name.lower(): frame for frame in reversed(frames)}


def _bodies(frames: Seeds) -> Seeds:
    maps = ("publish", "refused", "open", "welcome", "denied")
    every_type = {
        "integer": 22,
        "number": 2.5,
        "boolean": True,
        "text": "vps",
        "octets": bytes(16),
        "integers": [11111, 2201],
        "texts": ["later"],
        "map": {"integer": 1, "unknown": None},
    }
    return {
        **{name: frames[name][HEADER_SIZE:] for name in maps},
        "hello": _RETURNING.encode(),
        "every-type": msgpack.packb(every_type),
    }


def _records(frames: Seeds) -> Seeds:
    """As a slow link and a fast one bring them; and with a byte changed, added and missing."""
    sent = [frames[name] for name in ("open", "data", "window", "fin", "ack")]
    whole, no_tampering = b"\0", b"\0\0\0"
    return {
        "whole": record_seed(Suite.AESGCM, sent, no_tampering + whole),
        "by-bytes": record_seed(Suite.CHACHAPOLY, sent, no_tampering + b"\1" * 400),
        "changed": record_seed(Suite.AESGCM, sent, b"\0\x50\1\1" + whole),
        "inserted": record_seed(Suite.AESGCM, sent, b"\0\x50\2\0\2\0\6" + whole),
        "cut": record_seed(Suite.CHACHAPOLY, sent, b"\0\x50\3\0\1" + whole),
    }


def _hellos() -> Seeds:
    return {
        "preface": b"\0" + encode_preface(Suite.AESGCM),
        "hello": b"\1" + _RETURNING.encode(),
        "welcome": b"\2" + _WELCOME.encode(),
        "denial": b"\3" + _DENIAL.encode(),
    }


def _handshakes(frames: Seeds) -> Seeds:
    def framed(data: bytes) -> bytes:
        return len(data).to_bytes(2, "big") + data

    honest, this_version, agents_side, relays_side = b"\0", b"\0", b"\0", b"\1"
    welcome, denied = framed(frames["welcome"]), framed(frames["denied"])
    return {
        "relay-aesgcm": b"\0" + relays_side + this_version + honest + framed(_RETURNING.encode()),
        "relay-chacha": b"\1" + relays_side + this_version + honest + framed(b""),
        "relay-version": b"\0" + relays_side + b"\1\2" + honest,
        "relay-changed": b"\0" + relays_side + this_version + b"\1\0\7\1",
        "agent-welcome": b"\0" + agents_side + framed(b"") + honest + welcome + honest,
        "agent-denied": b"\1" + agents_side + framed(b"") + honest + denied + honest,
        "agent-version": b"\0" + agents_side + framed(_DENIAL.encode()) + honest,
        "agent-changed": b"\0" + agents_side + framed(b"") + b"\1\0\x30\1",
        "agent-cut": b"\1" + agents_side + framed(b"") + b"\3\0\x30",
    }


def _invitations() -> Seeds:
    text = _INVITATION.encode()
    parts = b"\2" + _INVITATION.relay_key + _INVITATION.token + b"\2"
    for host, port in _INVITATION.hosts:
        parts += bytes([len(host)]) + host.encode() + port.to_bytes(3, "big")
    body = parts[1:50] + b"\x0fvps.example.net\x1b\x6e\x0b2001:db8::1\x01\xbb"
    return {
        "text": b"\0" + text.encode(),
        "wrapped": b"\0Run this:\n " + text[:60].upper().encode() + b"\n " + text[60:].encode(),
        "newer": b"\0relay2_" + text[7:30].encode(),
        "body": b"\1" + body,
        "parts": parts,
    }


def _sessions() -> Seeds:
    """Steps of `tests.fuzz.session`: a side, a step, its numbers."""
    relay, agent = b"\1", b"\0"
    deliver = relay + b"\0\0" + agent + b"\0\0"
    write = relay + b"\2\0\4\0" + agent + b"\2\0\3\0"
    read = relay + b"\3\0\3\0\1" + agent + b"\3\0\4\0\1"
    finish = relay + b"\4\0\0" + agent + b"\4\0\0"
    lose_both_ways = relay + b"\x08\2\1\1"
    return {
        "echo": write + deliver + read + deliver + finish,
        "cut": write + lose_both_ways + write + deliver + read + finish,
        "half-resumed": write + agent + b"\x08\1\0\2" + read + relay + b"\x09",
        "reset": write + deliver + finish + agent + b"\4\0\1" + relay + b"\4\0\1",
        "slow": relay + b"\5\0" + relay + b"\7\0\x20" + write + deliver + agent + b"\x0a\x0f\xa0\1",
        "published": agent + b"\6\0\0" + deliver + relay + b"\1\1" + agent + b"\6\1\0" + deliver,
    }


def seeds() -> Iterator[tuple[Path, bytes]]:
    """Each with its path below `CORPUS`."""
    sessions = _record()
    frames = _frames(sessions)
    of_target = {
        "body": _bodies(frames),
        "frame": frames,
        "handshake": _handshakes(frames),
        "hello": _hellos(),
        "invitation": _invitations(),
        "peer": {
            "of-relay" if session.steps[0] else "of-agent": bytes(session.steps)
            for session in sessions
        },
        "record": _records(frames),
        "session": _sessions(),
    }
    for target, contents in of_target.items():
        for name, data in contents.items():
            yield CORPUS / target / name, data


def main() -> None:
    for path, data in seeds():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
