"""How streams and links end, and what is left of them."""

from __future__ import annotations

import pytest

from protocol.errors import LocalProtocolError, ResetCode, SessionLost
from protocol.session.events import (
    PeerClosing,
)
from protocol.session.liveness import Verdict
from protocol.session.replay import ReplayCap
from protocol.session.side import Side
from protocol.wire.frame import CloseCode
from tests.support.lone_session import (
    ACK,
    CLOSE,
    DATA,
    FIN,
    PING,
    PONG,
    PUBLISH,
    WIDE,
    Lone,
    fill,
    frame,
    publish_body,
    u8,
    u64,
)
from tests.support.pair import SOURCE, Pair, Profile


def test_a_direction_ended_by_fin_survives_a_later_reset() -> None:
    # `ssh host 'cat big; exit 3'` with a slow reader.
    pair = Pair()
    stream = pair.opened()
    pair.agent.capacity = 0
    pair.write(pair.agent, stream, 60_000)
    pair.finish(pair.agent, stream)
    assert pair.agent.halves[stream].finished
    pair.reset(pair.agent, stream)
    pair.agent.capacity = 10**9
    pair.serve(pair.agent)
    pair.write(pair.relay, stream, 50_000)
    pair.settle()
    half = pair.relay.halves[stream]
    assert half.reset_came == ResetCode.ABORTED
    assert half.reset_finished
    assert half.delivered == 60_000
    pair.read(pair.relay, stream, 10**6)
    assert half.fin_delivered
    pair.settle()
    pair.check_at_rest()


def test_the_last_bytes_before_the_end_are_not_lost_on_a_resume() -> None:
    for arrived in range(4):
        pair = Pair()
        stream = pair.opened()
        pair.agent.capacity = 10**9
        for _ in range(2):
            pair.write(pair.agent, stream, 100)
        pair.finish(pair.agent, stream)
        assert [one[0] for one in pair.agent.wire] == [DATA, DATA, FIN]
        pair.cut(to_relay=arrived)
        pair.notice(pair.agent)
        assert pair.agent.session.open_streams == 1
        pair.resume()
        pair.settle()
        assert pair.relay.halves[stream].delivered == 200
        assert pair.relay.halves[stream].fin_came
        pair.check()


def test_an_end_made_while_detached_arrives() -> None:
    pair = Pair()
    stream = pair.opened()
    pair.cut()
    for side in pair.sides:
        pair.notice(side)
        pair.write(side, stream, 300_000)
        pair.finish(side, stream)
    pair.check()
    pair.resume()
    for _ in range(20):
        pair.settle()
        for side in pair.sides:
            pair.read(side, stream, 10**6)
    pair.settle()
    for side in pair.sides:
        assert side.halves[stream].delivered == 300_000
        assert side.halves[stream].fin_delivered
    pair.check_at_rest()


def test_a_full_duplex_transfer_with_both_sides_writing_first_is_never_wedged() -> None:
    profile = Profile(
        stream_window=20_000, window_limit=40_000, session_window=30_000, replay_limit=60_000
    )
    pair = Pair(profile, profile)
    streams = [pair.opened(), pair.open(1)]
    for side in pair.sides:
        side.capacity = 4000
    pair.deliver(pair.agent)
    for stream in streams:
        assert stream is not None
        for side in pair.sides:
            pair.write(side, stream, 500_000)
            pair.finish(side, stream)
    # Nobody reads until nothing moves any more.
    pair.settle()
    for _ in range(2000):
        for side in pair.sides:
            for half in side.halves.values():
                pair.read(side, half.stream, 7000)
        pair.settle()
        pair.check()
        if all(half.over for side in pair.sides for half in side.halves.values()):
            break
    for side in pair.sides:
        assert [half.delivered for half in side.halves.values()] == [500_000] * 2
    pair.settle()
    pair.check_at_rest()


def test_a_full_replay_buffer_is_not_a_dead_peer() -> None:
    # The peer takes all frames but acks none, as if its link to us were slow beyond measure.
    lone = Lone.agent(1, profile=WIDE)
    fill(lone, 1)
    held = lone.session.statistics().replay_held
    for _ in range(100):
        lone.now = lone.session.next_deadline()
        verdict = lone.session.handle_deadline(lone.now)
        assert verdict in (Verdict.ALIVE, Verdict.PING, Verdict.SUSPECT)
        for ping in [one for one in lone.sent() if one[0] == PING]:
            lone.now += 0.5
            lone.session.heard(lone.now)
            lone.get(frame(PONG, 0, u64(1) + ping[13:]))
    assert lone.session.attached
    assert lone.session.statistics().replay_held == held
    lone.ack_all()
    assert lone.session.take_ready() == [1]


def test_a_stream_is_open_until_its_last_frame_is_acked_and_written() -> None:
    lone = Lone.agent(1)
    lone.get(frame(DATA, 1, b"x"))
    lone.get(frame(FIN, 1))
    lone.session.finish(1)
    lone.sent()
    lone.session.consumed(1, 1, kept_up=True)
    lone.session.fin_delivered(1)
    assert lone.session.open_streams == 1
    lone.ack_all()
    assert lone.session.open_streams == 0


def test_a_fin_acked_by_a_resume_frees_the_slot() -> None:
    lone = Lone.agent(1)
    lone.get(frame(FIN, 1))
    lone.session.fin_delivered(1)
    lone.session.finish(1)
    lone.sent()
    lone.session.detach()
    lone.session.attach(2, lone.now)
    assert lone.session.open_streams == 0
    assert lone.sent() == []


def test_resuming_outside_what_was_sent_loses_the_session() -> None:
    lone = Lone.agent(1)
    lone.get(frame(ACK, 0, u64(1)))
    lone.session.detach()
    for received in (0, 2):
        with pytest.raises(SessionLost):
            lone.session.attach(received, lone.now)
    lone.session.attach(1, lone.now)


def test_what_was_link_local_dies_with_its_link() -> None:
    lone = Lone.agent()
    lone.get(frame(PING, 0, u64(0, 7)))
    lone.session.close_link(CloseCode.RESTARTING)
    lone.session.detach()
    lone.session.close_link(CloseCode.RESTARTING)
    lone.session.attach(1, lone.now)
    assert lone.sent() == []


def test_the_handshake_tells_what_was_received() -> None:
    lone = Lone.agent(1)
    lone.session.detach()
    lone.session.attach(1, lone.now)
    assert lone.session.next_deadline() > lone.now + 1, "no ack is owed"


def test_a_goodbye_goes_out_and_comes_in() -> None:
    lone = Lone.agent()
    lone.session.close_link(CloseCode.GONE)
    assert lone.sent() == [frame(CLOSE, 0, u8(1))]
    assert lone.get(frame(CLOSE, 0, u8(2))) == PeerClosing(CloseCode.RESTARTING)
    assert lone.get(frame(CLOSE, 0, u8(9))) == PeerClosing(None)


def test_without_a_link_there_is_no_liveness() -> None:
    lone = Lone.agent()
    lone.session.detach()
    assert not lone.session.attached
    assert lone.session.statistics().rtt == 0.0
    with pytest.raises(LocalProtocolError):
        lone.session.heard(lone.now)
    with pytest.raises(LocalProtocolError):
        lone.session.next_frame(lone.now)


def test_discarding_gives_back_all_memory() -> None:
    cap = ReplayCap(10**6)
    lone = Lone(side=Side.RELAY, cap=cap)
    lone.get(frame(PUBLISH, 0, publish_body(1)))
    for stream in (lone.session.open(1, SOURCE), lone.session.open(1, SOURCE)):
        assert stream is not None
        lone.send(stream, bytes(60_000))
        lone.session.next_frame(lone.now)
    lone.session.published(1, 22)
    assert cap.held
    lone.session.discard()
    assert cap.held == 0
    statistics = lone.session.statistics()
    assert (statistics.replay_held, statistics.control_held, statistics.streams) == (0, 0, 0)
    lone.session.reset(1, ResetCode.SESSION_LOST)
    lone.session.consumed(1, 5, kept_up=True)
    assert lone.session.take_ready() == []
