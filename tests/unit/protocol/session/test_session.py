"""One session against frames written by hand, and two against each other (`pair`)."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError, ResetCode, SessionLost
from protocol.session.acks import ACK_DELAY, ACK_FRAMES
from protocol.session.events import (
    DataReceived,
    Event,
    PeerClosing,
    PublicationConfirmed,
    PublicationRefused,
    PublicationWithdrawn,
    PublishRequested,
    StreamFinished,
    StreamOpened,
    StreamReset,
)
from protocol.session.liveness import Verdict
from protocol.session.outbox import CONTROL_HEADROOM
from protocol.session.replay import ReplayCap
from protocol.session.session import Session, SessionOptions
from protocol.session.stream import End
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import HEADER_SIZE, MAX_PAYLOAD, MAX_STREAM, MAX_WINDOW, CloseCode
from protocol.wire.hello import Limits
from tests.support.pair import SMALL, SOURCE, Pair, Profile

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
        relay: bool = False,
        profile: Profile | None = None,
        peer: Limits | None = None,
        cap: ReplayCap | None = None,
    ) -> None:
        profile = profile or Profile()
        self.pool = BufferPool()
        self.session = Session(
            relay=relay,
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


# Every (state, frame) pair. A cell is `event sending/receiving`, the state after it; `-` is no
# event, `ignored` counts the frame and does nothing, `error` is the peer's.
RECEIVED = """
sending receiving | DATA              | WINDOW         | FIN               | RESET
OPEN    OPEN      | data OPEN/OPEN    | - OPEN/OPEN    | fin OPEN/ENDED    | reset gone
OPEN    ENDED     | error             | - OPEN/ENDED   | error             | finished DONE/ENDED
OPEN    DONE      | error             | - OPEN/DONE    | error             | finished gone
ENDING  OPEN      | data ENDING/OPEN  | - ENDING/OPEN  | fin ENDING/ENDED  | reset gone
ENDING  ENDED     | error             | - ENDING/ENDED | error             | finished DONE/ENDED
ENDING  DONE      | error             | - ENDING/DONE  | error             | finished gone
ENDED   OPEN      | data ENDED/OPEN   | - ENDED/OPEN   | fin ENDED/ENDED   | reset gone
ENDED   ENDED     | error             | - ENDED/ENDED  | error             | finished DONE/ENDED
ENDED   DONE      | error             | - ENDED/DONE   | error             | finished gone
DONE    OPEN      | data DONE/OPEN    | - DONE/OPEN    | fin DONE/ENDED    | reset gone
DONE    ENDED     | error             | - DONE/ENDED   | error             | finished DONE/ENDED
gone    gone      | ignored gone      | ignored gone   | ignored gone      | ignored gone
never   never     | error             | error          | error             | error
"""

# The same for what the owner calls; `bug` is LocalProtocolError, `RESET` that frame goes out.
CALLED = """
sending receiving | send         | finish        | reset             | consumed | fin_delivered
OPEN    OPEN      | OPEN/OPEN    | ENDING/OPEN   | RESET gone        | bug      | bug
OPEN    ENDED     | OPEN/ENDED   | ENDING/ENDED  | RESET gone        | bug      | OPEN/DONE
OPEN    DONE      | OPEN/DONE    | ENDING/DONE   | RESET gone        | OPEN/DONE | bug
ENDING  OPEN      | bug          | bug           | RESET ENDING/DONE | bug      | bug
ENDING  ENDED     | bug          | bug           | ENDING/DONE       | bug      | ENDING/DONE
ENDING  DONE      | bug          | bug           | ENDING/DONE       | ENDING/DONE | bug
ENDED   OPEN      | bug          | bug           | RESET ENDED/DONE  | bug      | bug
ENDED   ENDED     | bug          | bug           | ENDED/DONE        | bug      | ENDED/DONE
ENDED   DONE      | bug          | bug           | ENDED/DONE        | ENDED/DONE | bug
DONE    OPEN      | DONE/OPEN    | DONE/OPEN     | RESET gone        | bug      | bug
DONE    ENDED     | DONE/ENDED   | DONE/ENDED    | gone              | bug      | gone
gone    gone      | gone         | gone          | gone              | gone     | gone
never   never     | never        | never         | never             | never    | never
"""


def cells(table: str) -> list[tuple[str, str, str, str]]:
    """(sending, receiving, input, expected) of each cell."""
    head, *rows = [line.split("|") for line in table.strip().splitlines()]
    inputs = [name.strip() for name in head[1:]]
    found = []
    for row in rows:
        sending, receiving = row[0].split()
        found += [
            (sending, receiving, name, cell.strip())
            for name, cell in zip(inputs, row[1:], strict=True)
        ]
    return found


def agent_in(sending: str, receiving: str) -> Lone:
    """An agent whose stream 1 is in that state."""
    if sending == "never":
        return Lone.agent()
    lone = Lone.agent(1)
    if sending == "gone":
        lone.get(frame(RESET, 1, u8(1)))
    if sending in ("ENDING", "ENDED", "DONE"):
        assert not lone.send(1, b"x")
        lone.session.finish(1)
    if sending in ("ENDED", "DONE"):
        lone.sent()
    if sending == "DONE":
        lone.ack_all()
    if receiving in ("ENDED", "DONE"):
        lone.get(frame(FIN, 1))
    if receiving == "DONE":
        lone.session.fin_delivered(1)
    if sending != "gone":
        assert lone.state(1) == (End[sending], End[receiving])
    return lone


@pytest.mark.parametrize("sending", ["ENDING", "ENDED"])
def test_what_was_under_way_when_we_reset_is_ignored(sending: str) -> None:
    lone = agent_in(sending, "OPEN")
    lone.session.reset(1, ResetCode.ABORTED)
    for late in (frame(DATA, 1, b"late"), frame(FIN, 1), frame(FIN, 1)):
        assert lone.get(late) is None
    assert lone.session.statistics().frames_ignored == 3
    assert shown(lone) == f"{sending}/DONE"


def shown(lone: Lone) -> str:
    state = lone.state(1)
    return "gone" if state is None else f"{state[0].name}/{state[1].name}"


BODIES = {"DATA": b"hello", "WINDOW": u32(10), "FIN": b"", "RESET": u8(2)}
KINDS = {"DATA": DATA, "WINDOW": WINDOW, "FIN": FIN, "RESET": RESET}


@pytest.mark.parametrize(("sending", "receiving", "name", "expected"), cells(RECEIVED))
def test_every_frame_in_every_state(sending: str, receiving: str, name: str, expected: str) -> None:
    lone = agent_in(sending, receiving)
    before = lone.session.statistics()
    received = frame(KINDS[name], 1, BODIES[name])
    if expected == "error":
        with pytest.raises(RemoteProtocolError):
            lone.get(received)
        return
    event = lone.get(received)
    what, after = expected.split()
    match what:
        case "data":
            assert isinstance(event, DataReceived)
            assert (event.stream, bytes(event.data)) == (1, b"hello")
        case "fin":
            assert event == StreamFinished(1)
        case "reset":
            assert event == StreamReset(1, 2, finished=False)
        case "finished":
            assert event == StreamReset(1, 2, finished=True)
        case _:
            assert event is None
    assert shown(lone) == after
    statistics = lone.session.statistics()
    assert statistics.frames_ignored - before.frames_ignored == (what == "ignored")
    assert statistics.frames_received == before.frames_received + 1
    if what in ("reset", "finished"):
        sent = lone.sent()
        assert not [one for one in sent if one[0] == RESET], "a RESET is never answered by one"


@pytest.mark.parametrize(("sending", "receiving", "name", "expected"), cells(CALLED))
def test_every_call_in_every_state(sending: str, receiving: str, name: str, expected: str) -> None:
    lone = agent_in(sending, receiving)
    session = lone.session
    calls = {
        "send": lambda: lone.send(1, b"more"),
        "finish": lambda: session.finish(1),
        "reset": lambda: session.reset(1, ResetCode.ABORTED),
        "consumed": lambda: session.consumed(1, 1, kept_up=True),
        "fin_delivered": lambda: session.fin_delivered(1),
    }
    assert bool(session.allowance(1)) == (sending == "OPEN")
    if expected == "bug":
        with pytest.raises(LocalProtocolError):
            calls[name]()
        return
    assert not calls[name]()
    *resets, after = expected.split()
    assert shown(lone) == ("gone" if after == "never" else after)
    sent = lone.sent()
    assert [one for one in sent if one[0] == RESET] == [frame(RESET, 1, u8(1))] * len(resets)
    if sending == "ENDING":
        # Finished is finished: data, FIN, and only then a RESET.
        assert [one[0] for one in sent] == [DATA, FIN] + [RESET] * len(resets)
    if after == "gone":
        lone.ack_all()
        assert session.statistics().replay_held == session.statistics().control_held == 0


# Illegal frames, one each


def relay_with_stream() -> Lone:
    lone = Lone(relay=True)
    lone.get(frame(PUBLISH, 0, publish_body(1)))
    assert lone.session.open(1, SOURCE) == 1
    lone.sent()
    return lone


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


# What a hostile peer may try


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
    lone = Lone(relay=True, peer=peer)
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


# Acks


def test_an_ack_goes_out_at_32_frames_and_counts_ignored_ones() -> None:
    lone = Lone.agent(1)
    lone.session.reset(1, ResetCode.ABORTED)
    lone.sent()
    for _ in range(ACK_FRAMES - 2):
        lone.get(frame(DATA, 1, b"x"))
    assert lone.sent() == []
    lone.get(frame(DATA, 1, b"x"))
    assert lone.sent() == [frame(ACK, 0, u64(ACK_FRAMES))]
    assert lone.session.received == ACK_FRAMES


def test_an_ack_goes_out_after_50_ms() -> None:
    lone = Lone.agent(1)
    due = lone.now + ACK_DELAY
    assert lone.session.next_deadline() == due
    assert lone.session.handle_deadline(due - 0.001) is Verdict.ALIVE
    assert lone.sent() == []
    assert lone.session.handle_deadline(due) is Verdict.ALIVE
    assert lone.sent() == [frame(ACK, 0, u64(1))]


def test_with_the_first_stream_silence_is_questioned_sooner() -> None:
    lone = Lone(relay=True)
    lone.get(frame(PUBLISH, 0, publish_body(1)))
    lone.now += ACK_DELAY
    lone.session.handle_deadline(lone.now)
    lone.sent()
    idle = lone.session.next_deadline()
    assert not lone.session.deadline_nearer
    lone.session.open(1, SOURCE)
    assert lone.session.deadline_nearer
    assert lone.session.next_deadline() < idle


def test_a_due_ack_behind_a_full_socket_does_not_keep_the_timer_busy() -> None:
    lone = Lone.agent(1)
    lone.now += ACK_DELAY
    lone.session.handle_deadline(lone.now)
    assert lone.session.next_deadline() > lone.now + 1


def test_a_ping_and_a_pong_carry_the_ack() -> None:
    lone = Lone.agent(1)
    lone.session.probe(lone.now)
    lone.get(frame(DATA, 1, b"x"))
    stamp = int(lone.now * 1_000_000)
    assert lone.sent() == [frame(PING, 0, u64(2, stamp))], "the count is that of sending"
    lone.get(frame(DATA, 1, b"x"))
    lone.get(frame(PING, 0, u64(1, 77)))
    assert lone.sent() == [frame(PONG, 0, u64(3, 77))]
    assert lone.session.next_deadline() >= lone.now + 1, "nothing is left to ack"


def test_acks_never_run_backwards_whatever_waited() -> None:
    pair = Pair()
    pair.opened()
    pair.agent.capacity = 0
    pair.agent.session.probe(pair.now)
    pair.relay.session.probe(pair.now)
    pair.open(1)
    pair.deliver(pair.agent)
    pair.agent.capacity = 10**9
    pair.serve(pair.agent)
    acked = [int.from_bytes(one[5:13], "big") for one in pair.agent.wire]
    assert [one[0] for one in pair.agent.wire] == [PONG, PING]
    assert acked == [2, 2]
    pair.settle()
    pair.check()


# Order of sending


def test_order_of_sending() -> None:
    lone = Lone.agent(1)
    lone.get(frame(DATA, 1, bytes(200 * 1024)))
    lone.sent()
    lone.send(1, b"data")
    lone.session.consumed(1, 200 * 1024, kept_up=False)
    lone.session.publish("web", 80)
    for _ in range(ACK_FRAMES):
        lone.get(frame(WINDOW, 0, u32(1)))
    kinds = [one[0] for one in lone.sent()]
    assert kinds == [ACK, PUBLISH, WINDOW, DATA]


def test_what_a_new_link_has_not_seen_goes_before_what_is_new() -> None:
    lone = Lone.agent(1)
    lone.send(1, b"one")
    lone.send(1, b"two")
    first = lone.sent()
    lone.session.detach()
    lone.session.publish("web", 80)
    lone.session.attach(2, lone.now)
    again = lone.sent()
    assert again[0] == first[1] == frame(DATA, 1, b"two")
    assert again[1][0] == PUBLISH


def test_a_reset_overtakes_the_streams_unsent_data() -> None:
    lone = Lone.agent(1, 3)
    before = lone.session._send_admission.credit.credit
    lone.send(1, bytes(1000))
    lone.send(3, b"other")
    lone.session.reset(1, ResetCode.TARGET_UNREACHABLE)
    assert lone.session._send_admission.credit.credit == before - 5, "credit not used comes back"
    assert lone.sent() == [frame(RESET, 1, u8(2)), frame(DATA, 3, b"other")]


def test_a_keystroke_goes_before_bulk() -> None:
    lone = Lone.agent(1, 3)
    for _ in range(2):
        lone.send(1, bytes(60_000))
        lone.session.next_frame(lone.now)
    lone.send(1, bytes(60_000))
    lone.send(1, bytes(60_000))
    lone.send(3, b"k")
    assert [one[4] for one in lone.sent()] == [3, 1, 1]


def test_the_quantum_follows_the_record_size() -> None:
    lone = Lone.agent(1, 3)
    lone.session.record_size = 2048
    assert lone.session.record_size == lone.session.allowance(1) == 2048
    for stream in (1, 3):
        for _ in range(8):
            lone.send(stream, bytes(1024))
    order = [one[4] for one in lone.sent()]
    # Two records are a turn; without, one stream would have sent all it has first.
    assert order[:4] == [1, 1, 3, 3]


# Reading local sockets


def test_a_socket_is_read_while_at_most_two_records_wait() -> None:
    lone = Lone.agent(1)
    for _ in range(2):
        assert lone.session.allowance(1) == MAX_PAYLOAD
        lone.send(1, bytes(100))
    assert lone.session.allowance(1) == 0
    assert lone.session.take_ready() == []
    assert lone.session.next_frame(lone.now)
    assert lone.session.take_ready() == [1]
    assert lone.session.take_ready() == [], "told once"
    assert lone.session.allowance(1) == MAX_PAYLOAD


def test_while_detached_sockets_are_read_into_the_budget() -> None:
    lone = Lone.agent(1)
    for _ in range(2):
        lone.send(1, bytes(100))
    assert lone.session.allowance(1) == 0
    lone.session.detach()
    assert lone.session.take_ready() == [1]
    assert lone.session.next_deadline() == math.inf
    count = 0
    while allowance := lone.session.allowance(1):
        lone.send(1, bytes(allowance))
        count += 1
    assert count == 4, "up to the stream's window"
    assert lone.session.take_ready() == []


def test_a_reader_without_credit_is_told_when_there_is_some() -> None:
    lone = Lone.agent(1, profile=SMALL)
    lone.send(1, bytes(900))
    lone.sent()
    assert lone.session.allowance(1) == 0
    assert lone.session.take_ready() == []
    lone.get(frame(WINDOW, 1, u32(7)))
    assert lone.session.take_ready() == [1]
    assert lone.session.allowance(1) == 7


def test_credit_granted_to_a_stream_with_a_full_queue_wakes_nobody() -> None:
    lone = Lone.agent(1, profile=SMALL)
    lone.send(1, bytes(450))
    lone.send(1, bytes(450))
    assert lone.session.allowance(1) == 0
    lone.get(frame(WINDOW, 1, u32(7)))
    assert lone.session.take_ready() == []
    lone.sent()
    assert lone.session.take_ready() == [1]


def test_a_reader_without_session_credit_is_told_when_there_is_some() -> None:
    lone = Lone.agent(1, 3, 5, profile=SMALL)
    lone.send(1, bytes(900))
    lone.send(3, bytes(900))
    lone.send(5, bytes(200))
    lone.sent()
    lone.ack_all()
    assert lone.session.allowance(5) == 0
    assert lone.session.take_ready() == []
    lone.get(frame(WINDOW, 0, u32(9)))
    assert lone.session.take_ready() == [5]
    assert lone.session.allowance(5) == 9


def fill(lone: Lone, stream: int) -> None:
    while allowance := lone.session.allowance(stream):
        lone.send(stream, bytes(allowance))
        lone.sent()


WIDE = Profile(stream_window=8 * 1024 * 1024, session_window=16 * 1024 * 1024)


def test_at_the_budget_reading_stops_and_goes_on_with_an_ack() -> None:
    lone = Lone.agent(1, profile=WIDE)
    fill(lone, 1)
    statistics = lone.session.statistics()
    assert statistics.replay_held <= WIDE.replay_limit * 7 // 8
    assert lone.session.take_ready() == [1], "one may try; there may be a little room"
    assert lone.session.allowance(1) == 0
    lone.ack_all()
    assert lone.session.statistics().replay_held == 0
    assert lone.session.take_ready() == [1]
    assert lone.session.allowance(1) == MAX_PAYLOAD


def test_a_keystroke_never_waits_for_replay_room() -> None:
    lone = Lone.agent(1, 3, profile=WIDE)
    fill(lone, 1)
    assert lone.session.allowance(3) > 15_000
    assert not lone.send(3, b"k")
    assert lone.sent() == [frame(DATA, 3, b"k")]


def test_readers_with_nothing_to_read_do_not_keep_the_rest_asleep() -> None:
    profile = Profile(
        streams=100,
        stream_window=8 * 1024 * 1024,
        session_window=16 * 1024 * 1024,
        replay_limit=200 * 1024,
    )
    streams = list(range(1, 101, 2))
    lone = Lone.agent(*streams, profile=profile)
    for stream in streams:
        fill(lone, stream)
    assert lone.session.take_ready()
    for stream in streams:
        assert lone.session.allowance(stream) == 0
    # The last ack there will be: nothing else is under way.
    lone.ack_all()
    lone.now += ACK_DELAY
    lone.sent()
    assert sorted(lone.session.take_ready()) == streams


def test_not_all_readers_race_for_a_little_room() -> None:
    profile = Profile(
        streams=100,
        stream_window=8 * 1024 * 1024,
        session_window=16 * 1024 * 1024,
        replay_limit=200 * 1024,
    )
    streams = list(range(1, 101, 2))
    lone = Lone.agent(*streams, profile=profile)
    for stream in streams:
        fill(lone, stream)
    while len(lone.session.take_ready()) > 1:
        pass
    for stream in streams:
        lone.session.allowance(stream)
    lone.get(frame(ACK, 0, u64(lone.session._outbox.replay.base + 2)))
    assert len(lone.session.take_ready()) < 5


def test_streams_that_all_have_much_to_send_get_as_much_of_a_small_budget() -> None:
    """The readers that are just being served must not take what others wait for."""
    profile = Profile(streams=50, session_window=8 << 20, replay_limit=1 << 20)
    pair = Pair(profile, profile)
    publication = pair.publish()
    pair.settle()
    streams = [pair.open(publication) for _ in range(50)]
    pair.settle()
    for stream in streams:
        pair.write(pair.relay, stream, 1000 << 20)
    for _ in range(200):
        pair.deliver(pair.agent, 64)
        for half in pair.agent.halves.values():
            pair.read(pair.agent, half.stream, len(half.unread))
        pair.tick(0.003)
        pair.deliver(pair.relay)
    got = [half.delivered for half in pair.agent.halves.values()]
    assert max(got) < 1.5 * min(got)


def test_the_cap_of_the_process_holds_over_all_sessions() -> None:
    cap = ReplayCap(400_000)
    one = Lone(relay=True, profile=WIDE, cap=cap)
    two = Lone(relay=True, profile=WIDE, cap=cap)
    for lone in (one, two):
        lone.get(frame(PUBLISH, 0, publish_body(1)))
        assert lone.session.open(1, SOURCE) == 1
    fill(one, 1)
    assert 350_000 - 17_000 < cap.held <= 350_000
    fill(two, 1)
    assert two.session.statistics().replay_held <= 16 * 1024
    assert cap.held <= 400_000
    one.session.discard()
    assert two.session.take_ready() == [1]
    assert two.session.allowance(1) == MAX_PAYLOAD


def test_a_frame_is_neither_empty_nor_too_large() -> None:
    lone = Lone.agent(1)
    buffer = bytearray(HEADER_SIZE + MAX_PAYLOAD)
    for count in (0, MAX_PAYLOAD + 1):
        with pytest.raises(LocalProtocolError):
            lone.session.send(1, [buffer], count)
    assert lone.session.send(1, [buffer], MAX_PAYLOAD) == []


def test_sending_beyond_the_allowance_is_a_bug_of_ours() -> None:
    lone = Lone.agent(1, profile=SMALL)
    with pytest.raises(LocalProtocolError):
        lone.send(1, bytes(901))


# Credit


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


# Publications


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


# Opening


def test_streams_are_odd_rising_and_never_reused() -> None:
    lone = relay_with_stream()
    lone.session.reset(1, ResetCode.ABORTED)
    assert [lone.session.open(1, SOURCE) for _ in range(2)] == [3, 5]


@pytest.mark.parametrize(("ours", "theirs"), [(2, 5), (5, 2)])
def test_open_stops_at_either_sides_limit(ours: int, theirs: int) -> None:
    lone = Lone(
        relay=True,
        profile=Profile(streams=ours),
        peer=Limits(streams=theirs, stream_window=10**5, session_window=10**6),
    )
    assert [lone.session.open(1, SOURCE) for _ in range(3)] == [1, 3, None]
    lone.session.reset(1, ResetCode.ABORTED)
    assert lone.session.open(1, SOURCE) == 5


def test_open_stops_at_half_the_headroom_of_control_frames() -> None:
    lone = Lone(relay=True)
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


# Ends


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


# Links


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
    lone = Lone(relay=True, cap=cap)
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


# Time


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
