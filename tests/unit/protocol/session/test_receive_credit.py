from __future__ import annotations

import pytest

from protocol.errors import RemoteProtocolError
from protocol.session.receive_credit import ReceiveCredit
from protocol.session.stream import End, Stream
from protocol.session.window import ReceiveWindow, SendWindow

NOW = 50.0
RTT = 0.1


def window(stream: int, increment: int) -> bytes:
    return b"\x07" + stream.to_bytes(4, "big") + increment.to_bytes(4, "big")


class Bench:
    def __init__(self, session: int = 1000) -> None:
        self.credit = ReceiveCredit(session)

    def stream(self, number: int, size: int = 400, limit: int = 1600) -> Stream:
        state = Stream(number, SendWindow(0), ReceiveWindow(size, limit=limit, now=NOW))
        self.credit.opened(state)
        return state

    def data(self, state: Stream, count: int) -> None:
        self.credit.accept(count)
        state.accept(count)

    def updates(self) -> list[bytes]:
        frames = []
        while (update := self.credit.next_update(NOW, RTT)) is not None:
            frames.append(update)
        return frames


def test_nothing_is_due_before_half_was_consumed() -> None:
    bench = Bench()
    state = bench.stream(1)
    bench.data(state, 400)
    bench.credit.consumed(state, 199, kept_up=False)
    assert bench.updates() == []
    bench.credit.consumed(state, 1, kept_up=False)
    assert bench.updates() == [window(1, 200)]


def test_one_update_tells_all_that_is_due() -> None:
    bench = Bench()
    one, two = bench.stream(1), bench.stream(3)
    for state in (one, two):
        bench.data(state, 400)
        bench.credit.consumed(state, 200, kept_up=False)
        bench.credit.consumed(state, 200, kept_up=False)
    session, *streams = sorted(bench.updates())
    assert session == window(0, 800)
    assert sorted(streams) == [window(1, 400), window(3, 400)]


def test_the_session_is_told_sooner_when_the_peer_has_little_left() -> None:
    bench = Bench()
    stuck, active = bench.stream(1), bench.stream(3)
    bench.data(stuck, 400)
    bench.data(active, 250)
    bench.credit.consumed(active, 175, kept_up=False)
    assert bench.updates() == []
    bench.credit.accept(175)
    assert bench.updates() == [window(0, 175)]


def test_the_sessions_window_bounds_all_streams_together() -> None:
    bench = Bench()
    bench.credit.accept(1000)
    with pytest.raises(RemoteProtocolError):
        bench.credit.accept(1)


def test_what_is_abandoned_returns_at_once_and_once() -> None:
    bench = Bench()
    state = bench.stream(1)
    bench.data(state, 400)
    bench.credit.accept(100)
    bench.credit.abandon(state)
    bench.credit.abandon(state)
    bench.credit.returned(0)
    assert state.receiving is End.DONE
    assert bench.updates() == []
    bench.credit.returned(100)
    assert bench.updates() == [window(0, 500)]


def test_no_update_for_a_direction_that_ended() -> None:
    bench = Bench()
    before, after = bench.stream(1), bench.stream(3)
    for state in (before, after):
        bench.data(state, 200)
    before.fin_came()
    bench.credit.consumed(before, 200, kept_up=True)
    bench.credit.consumed(after, 200, kept_up=True)
    after.fin_came()
    assert bench.updates() == []


def test_a_closed_stream_leaves_nothing_due() -> None:
    bench = Bench()
    state = bench.stream(1)
    bench.data(state, 200)
    bench.credit.consumed(state, 200, kept_up=True)
    bench.credit.closed(state)
    assert bench.updates() == []
    assert bench.credit._promised == 0
    assert not bench.credit.due


@pytest.mark.parametrize(
    ("kept_up", "session", "increment"),
    [
        (True, 1067, 600),  # 400 + 400 are three quarters of 1,067
        (True, 1066, 200),
        (False, 10_000, 200),
    ],
)
def test_a_window_grows_for_a_reader_that_kept_up_and_within_the_session(
    kept_up: bool, session: int, increment: int
) -> None:
    bench = Bench(session)
    state = bench.stream(1)
    bench.data(state, 200)
    bench.credit.consumed(state, 200, kept_up=kept_up)
    assert bench.updates() == [window(1, increment)]
    assert bench.credit._promised == state.window.size == 200 + increment
