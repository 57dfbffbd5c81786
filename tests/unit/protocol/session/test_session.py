"""One session against frames written by hand, and two against each other (`pair`)."""

from __future__ import annotations

import pytest

from protocol.errors import ResetCode, SessionLost
from protocol.session.acks import ACK_DELAY
from protocol.session.events import (
    PublicationConfirmed,
    PublicationRefused,
    PublicationWithdrawn,
    PublishRequested,
    StreamOpened,
)
from protocol.session.liveness import Verdict
from protocol.session.outbox import CONTROL_HEADROOM
from protocol.session.side import Side
from protocol.wire.frame import MAX_STREAM
from protocol.wire.hello import Limits
from tests.support.lone_session import (
    ACK,
    DATA,
    OPEN,
    PING,
    PONG,
    RESET,
    Lone,
    frame,
    open_body,
    relay_with_stream,
    u8,
    u64,
)
from tests.support.pair import SOURCE, Pair, Profile


def test_publishing_both_ways() -> None:
    pair = Pair()
    number = pair.publish(2222)
    pair.settle()
    assert isinstance(pair.relay.events[-1], PublishRequested)
    pair.relay.session.refused(number, 1, "port 2222 is held by nginx")
    pair.serve(pair.relay)
    pair.settle()
    assert isinstance(pair.agent.events[-1], PublicationRefused)
    pair.relay.session.published(number, 2222)
    pair.serve(pair.relay)
    pair.settle()
    assert isinstance(pair.agent.events[-1], PublicationConfirmed)
    pair.agent.session.unpublish(number)
    pair.serve(pair.agent)
    pair.settle()
    assert pair.relay.events[-1] == PublicationWithdrawn(number)


def test_open_of_a_withdrawn_publication_is_reset_and_open_streams_go_on() -> None:
    pair = Pair()
    stream = pair.opened()
    pair.agent.session.unpublish(1)
    late = pair.open(1)
    assert late is not None
    pair.write(pair.relay, late, 5000)
    pair.settle()
    assert pair.relay.halves[late].reset_came == ResetCode.SERVICE_GONE
    assert late not in pair.agent.halves
    pair.write(pair.relay, stream, 5000)
    pair.settle()
    assert pair.agent.halves[stream].delivered == 5000
    pair.check()


def test_open_beyond_the_agents_limit_is_reset_and_its_data_ignored() -> None:
    lone = Lone.agent(1, profile=Profile(streams=1))
    assert lone.get(frame(OPEN, 3, open_body(1))) is None
    assert lone.get(frame(DATA, 3, b"early")) is None
    assert lone.sent() == [frame(RESET, 3, u8(ResetCode.REFUSED))]
    assert lone.session.open_streams == 1
    assert lone.state(3) is None
    lone.get(frame(RESET, 1, u8(1)))
    assert isinstance(lone.get(frame(OPEN, 5, open_body(1))), StreamOpened)


def test_streams_are_odd_rising_and_never_reused() -> None:
    lone = relay_with_stream()
    lone.session.reset(1, ResetCode.ABORTED)
    assert [lone.session.open(1, SOURCE) for _ in range(2)] == [3, 5]


@pytest.mark.parametrize(("ours", "theirs"), [(2, 5), (5, 2)])
def test_open_stops_at_either_sides_limit(ours: int, theirs: int) -> None:
    lone = Lone(
        side=Side.RELAY,
        profile=Profile(streams=ours),
        peer=Limits(streams=theirs, stream_window=10**5, session_window=10**6),
    )
    assert [lone.session.open(1, SOURCE) for _ in range(3)] == [1, 3, None]
    lone.session.reset(1, ResetCode.ABORTED)
    assert lone.session.open(1, SOURCE) == 5


def test_open_stops_at_half_the_headroom_of_control_frames() -> None:
    lone = Lone(side=Side.RELAY)
    lone.session.detach()
    while (stream := lone.session.open(1, SOURCE)) is not None:
        lone.session.reset(stream, ResetCode.ABORTED)
    held = lone.session.statistics().control_held
    assert CONTROL_HEADROOM // 2 < held < CONTROL_HEADROOM // 2 + 1000


def test_the_last_id_is_used_and_then_the_session_is_over() -> None:
    lone = relay_with_stream()
    lone.session._last_stream = MAX_STREAM - 2
    assert lone.session.open(1, SOURCE) == MAX_STREAM
    with pytest.raises(SessionLost):
        lone.session.open(1, SOURCE)


def test_silence_is_questioned_sooner_with_a_stream_open() -> None:
    lone = Lone.agent()
    lone.ack_all()
    assert lone.session.next_deadline() == lone.now + 20
    lone.get(frame(OPEN, 1, open_body(1)))
    lone.now += ACK_DELAY
    lone.session.handle_deadline(lone.now)
    lone.sent()
    assert lone.session.next_deadline() == 1004.0


def test_unacked_frames_are_questioned_and_an_ack_ends_it() -> None:
    lone = Lone.agent()
    lone.ack_all()
    lone.now += 1
    lone.session.publish("web", 80)
    lone.sent()
    assert lone.session.next_deadline() == lone.now + 2
    assert lone.session.handle_deadline(lone.now + 2) is Verdict.SUSPECT
    assert lone.sent() == [frame(PING, 0, u64(0, int((lone.now + 2) * 1_000_000)))]
    lone.session.heard(lone.now + 2.5)
    lone.ack_all()
    assert lone.session.next_deadline() == lone.now + 2.5 + 20


def test_an_ack_of_some_starts_the_wait_for_the_rest() -> None:
    lone = Lone.agent()
    lone.session.publish("web", 80)
    lone.sent()
    lone.now += 1.5
    lone.session.heard(lone.now)
    lone.get(frame(ACK, 0, u64(1)))
    assert lone.session.next_deadline() == lone.now + 2


def test_a_probe_asks_once() -> None:
    lone = Lone.agent()
    lone.session.probe(lone.now)
    lone.session.probe(lone.now + 1)
    assert len(lone.sent()) == 1
    assert lone.session.handle_deadline(lone.now + 1) is Verdict.SUSPECT
    assert lone.session.handle_deadline(lone.now + 3) is Verdict.DEAD


def test_a_pong_measures_the_round_trip() -> None:
    lone = Lone.agent()
    lone.session.probe(lone.now)
    (ping,) = lone.sent()
    lone.now += 0.25
    lone.get(frame(PONG, 0, u64(1) + ping[13:]))
    assert lone.session.statistics().rtt == pytest.approx(0.25)
