from __future__ import annotations

import math

from protocol.session.acks import ACK_DELAY, ACK_FRAMES, Acks
from protocol.session.link_state import LinkState
from protocol.session.liveness import Verdict
from protocol.wire.frame import CloseCode

NOW = 1000.0


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


class Bench:
    def __init__(self) -> None:
        self.acks = Acks()
        self.link = LinkState(self.acks, NOW, pings_first=True)

    def frames(self) -> list[bytes]:
        frames = []
        while (frame := self.link.next_frame()) is not None:
            frames.append(frame)
        return frames


def test_nothing_to_say_at_first() -> None:
    acks = Acks()
    for _ in range(ACK_FRAMES):
        acks.count(5, NOW)
    link = LinkState(acks, NOW, pings_first=True)
    assert link.next_frame() is None, "the handshake told the peer"
    assert acks.deadline == math.inf


def test_frames_are_made_when_they_go_out() -> None:
    bench = Bench()
    bench.link.probe(NOW)
    bench.link.pong(7)
    bench.acks.count(5, NOW)
    stamp = u64(int(NOW * 1_000_000))
    head = b"\0\0\0\0"
    assert bench.frames() == [
        b"\x45" + head + u64(1) + u64(7),
        b"\x44" + head + u64(1) + stamp,
    ]
    assert bench.acks.deadline == math.inf, "both carried the ack"


def test_one_of_a_kind_waits_the_newest() -> None:
    bench = Bench()
    for stamp in range(100):
        bench.link.pong(stamp)
    bench.link.close(CloseCode.RESTARTING)
    bench.link.close(CloseCode.GONE)
    assert bench.frames() == [b"\x46\0\0\0\0\x01"]


def test_nothing_follows_the_goodbye() -> None:
    """What would, might keep the goodbye itself from arriving in time."""
    bench = Bench()
    bench.link.pong(7)
    bench.link.close(CloseCode.GONE)
    assert bench.link.next_frame() == b"\x46\0\0\0\0\x01"
    bench.link.pong(8)
    assert bench.frames() == []


def test_a_due_ack_goes_out_once() -> None:
    bench = Bench()
    for _ in range(ACK_FRAMES):
        bench.acks.count(5, NOW)
    assert bench.frames() == [b"\x43\0\0\0\0" + u64(ACK_FRAMES)]


def test_the_ack_timer_is_a_deadline() -> None:
    bench = Bench()
    bench.acks.count(5, NOW)
    assert bench.link.deadline(streams=True) == NOW + ACK_DELAY
    assert bench.link.handle_deadline(NOW + ACK_DELAY, streams=True) is Verdict.ALIVE
    assert bench.frames() == [b"\x43\0\0\0\0" + u64(1)]
    assert bench.link.deadline(streams=True) == NOW + 4


def test_silence_sends_a_ping() -> None:
    bench = Bench()
    assert bench.link.handle_deadline(NOW + 4 - 0.01, streams=True) is Verdict.ALIVE
    assert bench.frames() == []
    assert bench.link.handle_deadline(NOW + 4, streams=True) is Verdict.PING
    assert [frame[0] for frame in bench.frames()] == [0x44]
    assert bench.link.handle_deadline(NOW + 5, streams=True) is Verdict.SUSPECT
    assert bench.link.handle_deadline(NOW + 7, streams=True) is Verdict.DEAD
    assert bench.frames() == []


def test_the_wait_for_an_ack_counts_from_the_first_frame_and_from_each_ack() -> None:
    bench = Bench()
    bench.link.sequenced_sent(NOW + 0.5)
    bench.link.sequenced_sent(NOW + 1)
    assert bench.link.deadline(streams=True) == NOW + 2.5
    bench.link.acked(NOW + 1.5, more=True)
    assert bench.link.deadline(streams=True) == NOW + 3.5
    bench.link.acked(NOW + 1.6, more=False)
    assert bench.link.deadline(streams=True) == NOW + 4
    bench.link.sequenced_sent(NOW + 1.7)
    assert bench.link.handle_deadline(NOW + 3.7, streams=True) is Verdict.SUSPECT
    assert [frame[0] for frame in bench.frames()] == [0x44]


def test_a_probe_asks_once() -> None:
    bench = Bench()
    bench.link.probe(NOW)
    assert len(bench.frames()) == 1
    bench.link.probe(NOW + 1)
    assert bench.frames() == []
