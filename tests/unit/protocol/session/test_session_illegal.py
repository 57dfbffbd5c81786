"""Frames that the peer must not send: illegal ones, floods, and arbitrary bytes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError, ResetCode
from protocol.session.events import (
    DataReceived,
    StreamReset,
)
from protocol.session.outbox import CONTROL_HEADROOM
from protocol.session.side import Side
from protocol.wire.frame import MAX_WINDOW
from protocol.wire.hello import Limits
from tests.support.lone_session import (
    ACK,
    CLOSE,
    DATA,
    DENIED,
    FIN,
    OPEN,
    PING,
    PONG,
    PUBLISH,
    PUBLISHED,
    REFUSED,
    RESET,
    UNPUBLISH,
    WELCOME,
    WINDOW,
    Lone,
    frame,
    id_body,
    id_port_body,
    open_body,
    publish_body,
    refused_body,
    relay_with_stream,
    u8,
    u32,
    u64,
)
from tests.support.pair import SMALL, SOURCE, Profile

ILLEGAL_AT_AGENT = {
    "shorter than a header": frame(FIN, 1)[:4],
    "empty": b"",
    "type 0": frame(0, 1),
    "type 0x0a": frame(0x0A, 1),
    "type 0x3f": frame(0x3F, 1),
    "type 0x40": frame(0x40),
    "type 0x47": frame(0x47),
    "type 0xff": frame(0xFF),
    "WELCOME after the handshake": frame(WELCOME, 0, b"\x80"),
    "DENIED after the handshake": frame(DENIED, 0, b"\x80"),
    "PUBLISH to an agent": frame(PUBLISH, 0, publish_body(9)),
    "UNPUBLISH to an agent": frame(UNPUBLISH, 0, id_body(1)),
    "PUBLISHED on a stream": frame(PUBLISHED, 1, id_port_body(1)),
    "REFUSED on a stream": frame(REFUSED, 1, refused_body(1)),
    "PUBLISHED of nothing": frame(PUBLISHED, 0, id_port_body(2)),
    "REFUSED of nothing": frame(REFUSED, 0, refused_body(2)),
    "OPEN of an even stream": frame(OPEN, 4, open_body(1)),
    "OPEN of stream 0": frame(OPEN, 0, open_body(1)),
    "OPEN again": frame(OPEN, 3, open_body(1)),
    "OPEN of a lower stream": frame(OPEN, 1, open_body(1)),
    "OPEN of a publication that never was": frame(OPEN, 5, open_body(2)),
    "empty DATA": frame(DATA, 3),
    "DATA on stream 0": frame(DATA, 0, b"x"),
    "DATA on an even stream": frame(DATA, 2, b"x"),
    "DATA on a stream never opened": frame(DATA, 5, b"x"),
    "WINDOW on an even stream": frame(WINDOW, 2, u32(1)),
    "WINDOW on a stream never opened": frame(WINDOW, 5, u32(1)),
    "WINDOW of 0": frame(WINDOW, 3, u32(0)),
    "WINDOW of 0 for the session": frame(WINDOW, 0, u32(0)),
    "WINDOW beyond the limit": frame(WINDOW, 3, u32(MAX_WINDOW - 256 * 1024 + 1)),
    "WINDOW beyond the limit for the session": frame(WINDOW, 0, u32(MAX_WINDOW - 1024 * 1024 + 1)),
    "WINDOW of 2^32-1": frame(WINDOW, 3, u32(2**32 - 1)),
    "WINDOW cut short": frame(WINDOW, 3, b"\0\0\1"),
    "WINDOW with a tail": frame(WINDOW, 3, u32(1) + b"\0"),
    "FIN on stream 0": frame(FIN, 0),
    "FIN on a stream never opened": frame(FIN, 5),
    "FIN with a body": frame(FIN, 3, b"\0"),
    "RESET on stream 0": frame(RESET, 0, u8(1)),
    "RESET on a stream never opened": frame(RESET, 5, u8(1)),
    "RESET without a code": frame(RESET, 3),
    "RESET with a tail": frame(RESET, 3, u8(1) + b"\0"),
    "ACK on a stream": frame(ACK, 3, u64(1)),
    "ACK of what was not sent": frame(ACK, 0, u64(2)),
    "ACK of 2^64-1": frame(ACK, 0, u64(2**64 - 1)),
    "ACK cut short": frame(ACK, 0, u64(1)[:7]),
    "ACK with a tail": frame(ACK, 0, u64(1) + b"\0"),
    "PING on a stream": frame(PING, 3, u64(0, 0)),
    "PING acking what was not sent": frame(PING, 0, u64(2, 0)),
    "PING cut short": frame(PING, 0, u64(0)),
    "PING with a tail": frame(PING, 0, u64(0, 0) + b"\0"),
    "PONG on a stream": frame(PONG, 3, u64(0, 0)),
    "PONG acking what was not sent": frame(PONG, 0, u64(2, 0)),
    "PONG cut short": frame(PONG, 0, u64(0)),
    "PONG with a tail": frame(PONG, 0, u64(0, 0) + b"\0"),
    "CLOSE on a stream": frame(CLOSE, 3, u8(1)),
    "CLOSE without a code": frame(CLOSE),
    "CLOSE with a tail": frame(CLOSE, 0, u8(1) + b"\0"),
}


@pytest.mark.parametrize("case", ILLEGAL_AT_AGENT)
def test_illegal_at_an_agent(case: str) -> None:
    lone = Lone.agent(1, 3)
    with pytest.raises(RemoteProtocolError):
        lone.get(ILLEGAL_AT_AGENT[case])


ILLEGAL_AT_RELAY = {
    "OPEN to a relay": frame(OPEN, 3, open_body(1)),
    "PUBLISHED to a relay": frame(PUBLISHED, 0, id_port_body(1)),
    "REFUSED to a relay": frame(REFUSED, 0, refused_body(1)),
    "PUBLISH on a stream": frame(PUBLISH, 1, publish_body(2)),
    "PUBLISH of an id that was": frame(PUBLISH, 0, publish_body(1)),
    "PUBLISH of id 0": frame(PUBLISH, 0, publish_body(0)),
    "PUBLISH with a tail": frame(PUBLISH, 0, publish_body(2) + b"\0"),
    "UNPUBLISH on a stream": frame(UNPUBLISH, 1, id_body(1)),
    "UNPUBLISH of what never was": frame(UNPUBLISH, 0, id_body(2)),
    "DATA on a stream never opened": frame(DATA, 3, b"x"),
}


@pytest.mark.parametrize("case", ILLEGAL_AT_RELAY)
def test_illegal_at_a_relay(case: str) -> None:
    lone = relay_with_stream()
    with pytest.raises(RemoteProtocolError):
        lone.get(ILLEGAL_AT_RELAY[case])


def test_data_up_to_the_streams_window_and_no_further() -> None:
    lone = Lone.agent(1, profile=SMALL)
    lone.get(frame(DATA, 1, bytes(SMALL.stream_window)))
    with pytest.raises(RemoteProtocolError):
        lone.get(frame(DATA, 1, b"x"))


def test_data_up_to_the_sessions_window_and_no_further() -> None:
    lone = Lone.agent(1, 3, 5, profile=SMALL)
    for stream in (1, 3):
        lone.get(frame(DATA, stream, bytes(SMALL.stream_window)))
    lone.get(frame(DATA, 5, bytes(SMALL.session_window - 2 * SMALL.stream_window)))
    with pytest.raises(RemoteProtocolError):
        lone.get(frame(DATA, 5, b"x"))


def test_windows_are_granted_up_to_the_limit() -> None:
    lone = Lone.agent(1)
    lone.get(frame(WINDOW, 1, u32(MAX_WINDOW - 256 * 1024)))
    lone.get(frame(WINDOW, 0, u32(MAX_WINDOW - 1024 * 1024)))


def test_an_ack_that_runs_backwards_is_illegal() -> None:
    lone = Lone.agent()
    lone.get(frame(ACK, 0, u64(1)))
    lone.get(frame(ACK, 0, u64(1)))
    with pytest.raises(RemoteProtocolError):
        lone.get(frame(ACK, 0, u64(0)))


def test_frames_for_a_stream_that_was_skipped_are_ignored() -> None:
    # Ids rise but need not be dense; below the last one there is nothing to tell apart.
    lone = Lone.agent(5)
    assert lone.get(frame(DATA, 3, b"x")) is None
    assert lone.session.statistics().frames_ignored == 1


kinds = st.sampled_from([*range(12), 0x3F, 0x40, *range(0x41, 0x48), 0xFF])
numbers = st.integers(0, 8) | st.integers(0, 2**32 - 1)
bodies = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 4).map(publish_body),
    st.integers(0, 4).map(open_body),
    st.integers(0, 4).map(id_port_body),
    st.integers(0, 4).map(id_body),
    st.integers(0, 4).map(refused_body),
    st.integers(0, 2**32 - 1).map(u32),
    st.integers(1, 5).map(u32),
    st.integers(0, 255).map(u8),
    st.integers(0, 9).map(u64),
    st.tuples(st.integers(0, 9), st.integers(0, 2**64 - 1)).map(lambda two: u64(*two)),
    st.integers(1, 1000).map(bytes),
)
frames = st.builds(frame, kinds, numbers, bodies)


@given(received=st.binary(max_size=60), relay=st.booleans())
def test_arbitrary_bytes_raise_only_the_peers_error(received: bytes, relay: bool) -> None:
    lone = relay_with_stream() if relay else Lone.agent(1, 3)
    with contextlib.suppress(RemoteProtocolError):
        lone.get(received)


@settings(deadline=None)
@given(received=st.lists(frames, max_size=30), relay=st.booleans(), data=st.data())
def test_a_hostile_peer_raises_only_its_own_error_and_only_where_it_is_received(
    received: list[bytes], relay: bool, data: st.DataObject
) -> None:
    lone = relay_with_stream() if relay else Lone.agent(1, 3)
    session = lone.session
    waiting: dict[int, int] = {}
    finished: set[int] = set()
    for one in received:
        try:
            event = lone.get(one)
        except RemoteProtocolError:
            continue  # the link would end here; go on all the same, which is harsher
        if isinstance(event, DataReceived):
            waiting[event.stream] = waiting.get(event.stream, 0) + len(event.data)
        elif isinstance(event, StreamReset):
            waiting.pop(event.stream, None)
        stream = data.draw(st.sampled_from([1, 3, 5]))
        match data.draw(st.integers(0, 5)):
            case 0:
                session.reset(stream, ResetCode.ABORTED)
                waiting.pop(stream, None)
            case 1 if stream not in finished:
                finished.add(stream)
                session.finish(stream)
            case 2 if waiting.get(stream):
                session.consumed(stream, waiting.pop(stream), kept_up=True)
            case 3 if allowance := session.allowance(stream):
                lone.send(stream, bytes(min(allowance, 700)))
            case 4:
                lone.sent()
        assert session._link is not None
        assert len(session._link.pending) <= 3
        session.take_ready()
        lone.now += 0.01
    lone.sent()
    session.discard()
    assert session.statistics().replay_held == session.statistics().control_held == 0


def test_a_peer_cannot_raise_its_error_out_of_a_local_reset() -> None:
    # It grants up to the limit while our credit is in use, then the unsent comes back.
    lone = Lone.agent(1)
    assert not lone.send(1, bytes(1000))
    lone.get(frame(WINDOW, 0, u32(MAX_WINDOW - 1024 * 1024 + 1000)))
    lone.session.reset(1, ResetCode.ABORTED)
    assert lone.session._send_admission.credit.credit == MAX_WINDOW + 1000


def test_a_flood_of_pings_is_answered_with_the_newest_and_holds_nothing() -> None:
    lone = Lone.agent()
    for stamp in range(1000):
        lone.get(frame(PING, 0, u64(0, stamp)))
    assert lone.sent() == [frame(PONG, 0, u64(0, 999))]


def test_a_flood_of_opens_without_acks_ends() -> None:
    lone = Lone.agent(profile=Profile(streams=1))
    lone.get(frame(OPEN, 1, open_body(1)))

    def flood() -> None:
        for stream in range(3, 200_000, 2):
            lone.get(frame(OPEN, stream, open_body(1)))

    with pytest.raises(RemoteProtocolError, match="pile up"):
        flood()
    assert lone.session.statistics().control_held <= CONTROL_HEADROOM + 1000


def test_a_peer_that_grants_no_credit_makes_the_relay_remember_no_ended_streams() -> None:
    peer = Limits(streams=10, stream_window=1000, session_window=1000)
    lone = Lone(side=Side.RELAY, peer=peer)
    lone.get(frame(PUBLISH, 0, publish_body(1)))
    stream = lone.session.open(1, SOURCE)
    assert stream is not None
    lone.send(stream, bytes(1000))
    lone.sent()
    for _ in range(50):
        visitor = lone.session.open(1, SOURCE)
        assert visitor is not None
        assert lone.session.allowance(visitor) == 0
        lone.session.reset(visitor, ResetCode.ABORTED)
        assert lone.session.take_ready() == []
        lone.sent()
        lone.ack_all()
    assert not lone.session._send_admission._starved


def test_credit_of_data_that_nobody_takes_returns_to_the_session() -> None:
    lone = Lone.agent(1, profile=SMALL)
    lone.get(frame(DATA, 1, bytes(900)))
    assert lone.sent() == []
    lone.session.reset(1, ResetCode.ABORTED)
    lone.get(frame(DATA, 1, bytes(100)))
    assert lone.sent() == [frame(RESET, 1, u8(1)), frame(WINDOW, 0, u32(1000))]
    lone.get(frame(DATA, 1, bytes(1000)))
    assert lone.sent() == [frame(WINDOW, 0, u32(1000))]
    assert lone.session.statistics().frames_ignored == 2
