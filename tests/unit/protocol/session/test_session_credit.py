"""Credit for what the local sockets took, and windows that grow."""

from __future__ import annotations

from tests.support.lone_session import (
    DATA,
    FIN,
    RESET,
    WINDOW,
    Lone,
    frame,
    u8,
    u32,
)
from tests.support.pair import SMALL, Pair, Profile


def test_credit_is_what_was_written_to_the_local_socket() -> None:
    lone = Lone.agent(1, profile=SMALL)
    lone.get(frame(DATA, 1, bytes(900)))
    assert lone.sent() == []
    lone.session.consumed(1, 449, kept_up=False)
    assert lone.sent() == []
    lone.session.consumed(1, 1, kept_up=False)
    assert lone.sent() == [frame(WINDOW, 1, u32(450))]


def test_no_credit_for_a_stream_whose_fin_came() -> None:
    lone = Lone.agent(1, profile=SMALL)
    lone.get(frame(DATA, 1, bytes(900)))
    lone.get(frame(FIN, 1))
    lone.session.consumed(1, 900, kept_up=True)
    assert lone.sent() == []
    lone.session.fin_delivered(1)


def test_a_credit_due_is_forgotten_when_the_fin_came_first() -> None:
    lone = Lone.agent(1, 3, profile=SMALL)
    for stream in (1, 3):
        lone.get(frame(DATA, stream, bytes(450)))
        lone.session.consumed(stream, 450, kept_up=False)
    lone.get(frame(FIN, 3))
    lone.get(frame(RESET, 1, u8(1)))
    assert lone.sent() == []


def test_a_window_grows_while_its_reader_keeps_up() -> None:
    lone = Lone.agent(1)
    for _ in range(2):
        lone.get(frame(DATA, 1, bytes(128 * 1024)))
        lone.session.consumed(1, 128 * 1024, kept_up=True)
        updates = lone.sent()
        lone.now += 0.003
    # The first tells only how long the second took.
    assert updates[-1] == frame(WINDOW, 1, u32((128 + 256) * 1024))


def test_windows_grow_only_within_the_sessions() -> None:
    pair = Pair()
    stream = pair.opened()
    other = pair.open(1)
    assert other is not None
    window = pair.relay.session._streams[stream].window
    pair.write(pair.agent, stream, 3 * 1024 * 1024)
    for _ in range(200):
        pair.deliver(pair.relay)
        pair.read(pair.relay, stream, 10**6)
        pair.deliver(pair.agent)
        pair.now += 0.0005
        pair.check()
    # Two streams of 256 KiB; 512 + 256 are three quarters of the session's 1 MiB.
    assert window.size == 512 * 1024
    assert pair.relay.session._receive_credit._promised == 768 * 1024
    pair.reset(pair.relay, other)
    assert pair.relay.session._receive_credit._promised == 512 * 1024


def test_grown_windows_that_nobody_reads_any_more_leave_room_for_others() -> None:
    # Two downloads grew their windows as far as they go, then the laptop suspended both.
    profile = Profile(
        stream_window=64 * 1024,
        window_limit=512 * 1024,
        session_window=1024 * 1024,
        replay_limit=8 * 1024 * 1024,
    )
    pair = Pair(profile, profile)
    downloads = [pair.opened(), pair.open(1)]
    pair.settle()
    for stream in downloads:
        assert stream is not None
        pair.write(pair.agent, stream, 8 * 1024 * 1024)
    for _ in range(100):
        pair.deliver(pair.relay)
        for stream in downloads:
            pair.read(pair.relay, stream, 10**6)
        pair.deliver(pair.agent)
    windows = [pair.relay.session._streams[stream].window.size for stream in downloads]
    assert sorted(windows) == [256 * 1024, 512 * 1024]
    pair.settle()
    third = pair.open(1)
    assert third is not None
    pair.settle()
    pair.write(pair.agent, third, 1024 * 1024)
    for _ in range(50):
        pair.settle()
        pair.read(pair.relay, third, 10**6)
    assert pair.relay.halves[third].delivered == 1024 * 1024
    pair.check()


def test_a_window_does_not_grow_for_a_reader_that_lags() -> None:
    pair = Pair()
    stream = pair.opened()
    pair.write(pair.agent, stream, 1024 * 1024)
    for _ in range(100):
        pair.deliver(pair.relay)
        pair.read(pair.relay, stream, 10**6, kept_up=False)
        pair.deliver(pair.agent)
    assert pair.relay.session._streams[stream].window.size == 256 * 1024
    assert pair.relay.halves[stream].delivered == 1024 * 1024


def test_streams_that_nobody_reads_do_not_stop_the_others() -> None:
    # 75 % of the session's window lies unread for good; half of it is never consumed.
    profile = Profile(stream_window=256 * 1024, session_window=1024 * 1024)
    pair = Pair(profile, profile)
    active = pair.opened()
    for _ in range(3):
        stuck = pair.open(1)
        assert stuck is not None
        pair.deliver(pair.agent)
        pair.write(pair.agent, stuck, 400 * 1024)
    pair.settle()
    pair.write(pair.agent, active, 2 * 1024 * 1024)
    for _ in range(200):
        pair.settle()
        pair.read(pair.relay, active, 10**6, kept_up=False)
        pair.check()
    assert pair.relay.halves[active].delivered == 2 * 1024 * 1024


def test_credit_is_told_when_what_is_left_shrinks_below_it() -> None:
    # Nothing more is consumed: the data for a stuck stream is what brings the update about.
    profile = Profile(stream_window=1000, session_window=1000)
    lone = Lone.agent(1, 3, profile=profile)
    lone.get(frame(DATA, 1, bytes(400)))
    lone.session.consumed(1, 400, kept_up=False)
    assert lone.sent() == []
    lone.get(frame(DATA, 3, bytes(199)))
    assert lone.sent() == []
    lone.get(frame(DATA, 3, bytes(1)))
    assert lone.sent() == [frame(WINDOW, 0, u32(400))]
