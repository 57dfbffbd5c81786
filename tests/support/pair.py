"""Two sessions joined by a link in memory, with what their owners do around them.

    Pair ── PairSide relay ── Session, Halves (one a stream: what a splice and its socket do)
         └─ PairSide agent ── the same
            each side's `wire` holds the frames under way to the other

Time is `pair.now`, moved by the test alone. A link is cut by losing a suffix of either wire.
`Pair.check` compares the sessions' books with what is really held.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import msgpack

from protocol.errors import ResetCode
from protocol.session.events import (
    DataReceived,
    Event,
    PublicationConfirmed,
    PublicationRefused,
    PublicationWithdrawn,
    PublishRequested,
    StreamFinished,
    StreamOpened,
    StreamReset,
)
from protocol.session.liveness import Verdict
from protocol.session.replay import ReplayCap
from protocol.session.send_admission import BURST_FRAMES
from protocol.session.session import Session, SessionOptions
from protocol.session.side import Side
from protocol.session.snapshot import export, restore
from protocol.session.stream import End, Sent, Stream
from protocol.wire.body import Fields
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import HEADER_SIZE, MAX_PAYLOAD, FrameType
from protocol.wire.hello import Limits

SOURCE = ("203.0.113.9", 4711)
_PERIOD = 65537
_NOISE = random.Random(1).randbytes(_PERIOD) * 3


def pattern(flow: int, offset: int, count: int) -> bytes:
    """What is written at `offset` of a flow: a byte out of place does not go unnoticed."""
    start = (offset + flow * 7919) % _PERIOD
    return _NOISE[start : start + count]


class PoisonedPool(BufferPool):
    """Spoils what comes back, so that a buffer given back too early shows in the data."""

    def give(self, buffer: bytearray) -> None:
        assert all(buffer is not free for free in self._free), "given back twice"
        buffer[:] = b"\xee" * len(buffer)
        super().give(buffer)


@dataclass(frozen=True)
class Profile:
    streams: int = 8
    stream_window: int = 256 * 1024
    session_window: int = 1024 * 1024
    window_limit: int = 1024 * 1024
    replay_limit: int = 1024 * 1024
    cap_limit: int = 8 * 1024 * 1024

    def limits(self) -> Limits:
        return Limits(
            streams=self.streams,
            stream_window=self.stream_window,
            session_window=self.session_window,
        )


LARGE = Profile()
# So small that every bound is met within a few frames.
SMALL = Profile(
    streams=3,
    stream_window=900,
    session_window=2000,
    window_limit=3600,
    replay_limit=6000,
    cap_limit=5500,
)
# And windows that a single write fills.
TINY = Profile(
    streams=3,
    stream_window=400,
    session_window=2000,
    window_limit=1600,
    replay_limit=6000,
    cap_limit=5500,
)


@dataclass
class Half:
    """One side's use of one stream: a socket, and a reader and a writer for it."""

    stream: int
    flow: int  # of what this side writes
    peer_flow: int
    intent: int = 0  # bytes the socket holds for reading
    written: int = 0  # bytes the session took
    want_fin: bool = False  # the socket's end of file follows `intent`
    finished: bool = False  # `Session.finish` was called
    waiting: bool = False  # the reader waits for `take_ready`
    unread: bytearray = field(default_factory=bytearray)  # came, not yet taken by the socket
    delivered: int = 0  # bytes that came
    fin_came: bool = False
    fin_delivered: bool = False
    reset: bool = False  # by this side
    reset_came: int | None = None
    reset_finished: bool = False  # as the event had it

    @property
    def over(self) -> bool:
        """The owner has let go of the stream."""
        if self.reset or (self.reset_came is not None and not self.reset_finished):
            return True
        outbound = self.finished or self.reset_came is not None
        return outbound and self.fin_delivered


class PairSide:
    def __init__(self, side: Side, profile: Profile, cap: ReplayCap, peer: Limits) -> None:
        self.side = side
        self.name = side.name.lower()
        self.profile = profile
        self.pool = PoisonedPool()
        self.cap = cap
        self.session = Session(side=side, options=self.options(), peer=peer)
        self.halves: dict[int, Half] = {}
        self.publications: set[int] = set()  # at the agent: confirmed; at the relay: asked for
        self.events: list[Event] = []
        self.wire: deque[bytes] = deque()  # under way to the other side
        self.woken: deque[Half] = deque()  # readers that were called and have not run yet
        self.busy = False  # their tasks wait for their turn
        self.capacity = 10**9  # bytes the wire takes before the socket is full
        self.wire_bytes = 0
        self.lost = False  # what is sent goes nowhere
        self.verdicts: list[Verdict] = []
        self.timer = 0.0  # what the deadline was when last asked for

    def options(self) -> SessionOptions:
        return SessionOptions(
            limits=self.profile.limits(),
            window_limit=self.profile.window_limit,
            replay_limit=self.profile.replay_limit,
            replay_cap=self.cap,
            pool=self.pool,
        )

    def deadline(self) -> float:
        """The session's; it never comes nearer without being said to."""
        hinted = self.session.deadline_nearer
        before, self.timer = self.timer, self.session.next_deadline()
        assert hinted or self.timer >= before - 1e-9
        return self.timer

    def add_half(self, stream: int) -> Half:
        flow = 2 * stream + (self.name == "relay")
        half = self.halves[stream] = Half(stream, flow, flow ^ 1)
        return half

    # What is held, counted anew

    def known_streams(self) -> list[Stream]:
        return list(self.session._streams.values())

    def kept(self) -> list[Sent]:
        outbox = self.session._outbox
        queued = [sent for stream in self.known_streams() for sent in stream.queue]
        return [*outbox.replay._kept, *outbox.control_queue, *queued]


class Pair:
    def __init__(
        self,
        relay: Profile = LARGE,
        agent: Profile = LARGE,
        *,
        attach: bool = True,
        shared_cap: bool = False,
    ) -> None:
        self.now = 1000.0
        cap = ReplayCap(relay.cap_limit)
        self.relay = PairSide(Side.RELAY, relay, cap, agent.limits())
        other = cap if shared_cap else ReplayCap(agent.cap_limit)
        self.agent = PairSide(Side.AGENT, agent, other, relay.limits())
        self.sides = (self.relay, self.agent)
        if attach:
            self.resume()

    def other(self, side: PairSide) -> PairSide:
        return self.agent if side is self.relay else self.relay

    # The link

    @property
    def attached(self) -> bool:
        return self.relay.session.attached and self.agent.session.attached

    def resume(self) -> None:
        """A new link: each side goes on from what the other has."""
        for side in self.sides:
            self.notice(side)
        relay, agent = self.relay.session, self.agent.session
        agent_has, relay_has = agent.received, relay.received
        relay.attach(agent_has, self.now)
        agent.attach(relay_has, self.now)
        for side in self.sides:
            side.lost = False
        for side in self.sides:
            self.serve(side)

    def half_resume(self) -> None:
        """The relay takes a new link, but its welcome never arrives."""
        for side in self.sides:
            self.notice(side)
        self.relay.session.attach(self.agent.session.received, self.now)
        self.relay.lost = True
        self.serve(self.relay)

    def cut(self, to_relay: int = 0, to_agent: int = 0) -> None:
        """Deliver that many more frames, lose the rest; neither side knows yet."""
        self.deliver(self.relay, to_relay)
        self.deliver(self.agent, to_agent)
        for side in self.sides:
            side.lost = True
            side.wire.clear()
            side.wire_bytes = 0

    def notice(self, side: PairSide) -> None:
        """`side` learns that its link is gone."""
        side.lost = True
        side.wire.clear()
        side.wire_bytes = 0
        side.session.detach()
        self.serve(side)

    def hand_over(self, side: PairSide) -> None:
        """Another process goes on with `side`: all it has is the sockets and what was saved."""
        self.notice(side)
        packed = msgpack.packb(export(side.session))
        side.session.discard()
        side.pool = PoisonedPool()
        saved = Fields(msgpack.unpackb(packed), strict=True)
        side.session = restore(saved, side=side.side, options=side.options())
        assert msgpack.packb(export(side.session)) == packed
        for half in side.halves.values():
            half.waiting = False
            self.pump(side, half)
        self.serve(side)

    def flush(self, side: PairSide) -> bool:
        sent = False
        while side.session.attached and side.wire_bytes < side.capacity:
            frame = side.session.next_frame(self.now)
            if frame is None:
                break
            sent = True
            if not side.lost:
                side.wire.append(bytes(frame))
                side.wire_bytes += len(frame)
        return sent

    def serve(self, side: PairSide) -> None:
        """Flush, and let readers go on as long as that moves anything."""
        moved = True
        while moved:
            moved = self.flush(side)
            for stream in side.session.take_ready():
                half = side.halves.get(stream)
                if half is not None and half.waiting and half not in side.woken:
                    side.woken.append(half)
            if not side.busy:
                moved |= self.run_woken(side)

    def run_woken(self, side: PairSide, count: int | None = None) -> bool:
        """The turn of `count` readers that were called, or of all; whether that moved anything."""
        moved = False
        for _ in range(len(side.woken) if count is None else min(count, len(side.woken))):
            half = side.woken.popleft()
            half.waiting = False
            moved |= self.pump(side, half)
        return moved

    def deliver(self, to: PairSide, count: int | None = None) -> int:
        """Hand over frames as one read of the link would; returns how many."""
        sender = self.other(to)
        done = 0
        while sender.wire and (count is None or done < count):
            if not to.session.attached:
                break
            frame = sender.wire.popleft()
            sender.wire_bytes -= len(frame)
            to.session.heard(self.now)
            event = to.session.receive(memoryview(frame), self.now)
            if event is not None:
                self.on_event(to, event)
            done += 1
        if done:
            self.serve(to)
            self.serve(sender)
        return done

    def settle(self) -> None:
        """Deliver until nothing is under way; acks that wait for a timer are told too."""
        for _ in range(10_000):
            moved = self.deliver(self.relay) + self.deliver(self.agent)
            if moved:
                continue
            if all(side.session._acks.deadline == float("inf") for side in self.sides):
                return
            self.tick(0.06)
        raise AssertionError("the two sides never come to rest")

    def heal(self) -> None:
        """Whatever was broken is whole again, and what waited has arrived."""
        for side in self.sides:
            side.capacity = 10**9
            side.busy = False
        if not self.attached or self.relay.lost or self.agent.lost:
            self.resume()
        for side in self.sides:
            self.serve(side)
        self.settle()

    def tick(self, seconds: float) -> None:
        """Let time pass; a side that judges its link dead leaves it."""
        self.now += seconds
        for side in self.sides:
            if side.session.attached and self.now >= side.deadline():
                verdict = side.session.handle_deadline(self.now)
                side.verdicts.append(verdict)
                if verdict is Verdict.DEAD:
                    self.notice(side)
            self.serve(side)

    # What owners and splices do

    def on_event(self, side: PairSide, event: Event) -> None:
        side.events.append(event)
        match event:
            case DataReceived(stream, data):
                half = side.halves[stream]
                assert not half.over
                assert not half.fin_came, "data after FIN"
                assert data == pattern(half.peer_flow, half.delivered, len(data))
                half.delivered += len(data)
                half.unread += data
                sender = self.other(side).halves[stream]
                assert half.delivered <= sender.written
            case StreamOpened(stream, _):
                side.add_half(stream)
            case StreamFinished(stream):
                half = side.halves[stream]
                half.fin_came = True
                sender = self.other(side).halves[stream]
                assert sender.finished, "a loss became a FIN"
                assert half.delivered == sender.written
                self.pass_fin(side, half)
            case StreamReset(stream, code, finished):
                half = side.halves[stream]
                assert half.reset_came is None, "reset twice"
                assert finished == half.fin_came or half.reset
                half.reset_came = code
                half.reset_finished = finished
                half.intent = 0
                if not finished:
                    half.unread.clear()
            case PublishRequested(publish):
                side.publications.add(publish.publication)
            case PublicationConfirmed(published):
                side.publications.add(published.publication)
            case PublicationRefused(refused):
                side.publications.discard(refused.publication)
            case PublicationWithdrawn(publication):
                side.publications.discard(publication)

    def publish(self, port: int = 11111) -> int:
        number = self.agent.session.publish("ssh", port)
        self.serve(self.agent)
        return number

    def open(self, publication: int) -> int | None:
        stream = self.relay.session.open(publication, SOURCE)
        if stream is not None:
            self.relay.add_half(stream)
            self.serve(self.relay)
        return stream

    def opened(self) -> int:
        """A stream open at both sides."""
        publication = self.publish()
        self.settle()
        stream = self.open(publication)
        assert stream is not None
        self.settle()
        return stream

    def write(self, side: PairSide, stream: int, count: int) -> None:
        """The socket of `stream` has `count` more bytes to read."""
        half = side.halves[stream]
        half.intent += count
        self.pump(side, half)
        self.serve(side)

    def finish(self, side: PairSide, stream: int) -> None:
        """The socket's end of file."""
        half = side.halves[stream]
        half.want_fin = True
        self.pump(side, half)
        self.serve(side)

    def pump(self, side: PairSide, half: Half) -> bool:
        """Read the socket as a splice does: allowance first, then as much as there is."""
        session, moved, frames = side.session, False, 1
        while not (half.waiting or half.finished or half.over or half.reset_came is not None):
            allowance = session.allowance(half.stream, frames)
            if not allowance:
                half.waiting = True
                break
            count = min(allowance, half.intent)
            if count:
                self._send(side, half, count)
                moved, frames = True, BURST_FRAMES if count == allowance else 1
            elif half.want_fin:
                session.finish(half.stream)
                half.finished = True
                moved = True
            else:
                break
            self.flush(side)
        return moved

    def _send(self, side: PairSide, half: Half, count: int) -> None:
        buffers = []
        for offset in range(0, count, MAX_PAYLOAD):
            data = pattern(half.flow, half.written + offset, min(count - offset, MAX_PAYLOAD))
            buffers.append(side.pool.take())
            buffers[-1][HEADER_SIZE : HEADER_SIZE + len(data)] = data
        for buffer in side.session.send(half.stream, buffers, count):
            side.pool.give(buffer)
        half.written += count
        half.intent -= count

    def read(self, side: PairSide, stream: int, count: int, *, kept_up: bool = True) -> None:
        """The socket takes `count` bytes of what waits for it."""
        half = side.halves[stream]
        count = min(count, len(half.unread))
        if count and not half.over:
            del half.unread[:count]
            side.session.consumed(stream, count, kept_up=kept_up)
            self.pass_fin(side, half)
        self.serve(side)

    def pass_fin(self, side: PairSide, half: Half) -> None:
        if half.fin_came and not half.unread and not half.fin_delivered and not half.reset:
            side.session.fin_delivered(half.stream)
            half.fin_delivered = True

    def reset(self, side: PairSide, stream: int, code: ResetCode = ResetCode.ABORTED) -> None:
        """The socket of `stream` is gone."""
        half = side.halves[stream]
        side.session.reset(stream, code)
        half.reset = True
        half.unread.clear()
        half.intent = 0
        self.serve(side)

    def bring_to_an_end(self) -> None:
        """Heal, read all there is, finish what is open: nothing is missing, nothing left behind."""
        self.heal()
        self.check()
        for _ in range(10_000):
            waiting = [
                (side, half)
                for side in self.sides
                for half in side.halves.values()
                if half.unread and not half.over
            ]
            if not waiting:
                break
            for side, half in waiting:
                self.read(side, half.stream, len(half.unread))
            self.settle()
        for side in self.sides:
            for half in side.halves.values():
                assert half.intent == 0, f"{side.name} is stuck with {half}"
                # Nothing is under way that could call it.
                asleep = half.waiting and not half.over and half.reset_came is None
                assert not asleep, f"{side.name} has forgotten {half}"
                if half.want_fin and half.reset_came is None and not half.reset:
                    assert half.finished, f"{side.name} cannot finish {half}"
                if not half.over and not half.want_fin and half.reset_came is None:
                    self.finish(side, half.stream)
        self.settle()
        self.check()
        for stream in self.relay.halves:
            self.check_ended(stream)
        self.check_at_rest()

    # The books

    def check(self) -> None:
        for side in self.sides:
            self._check_memory(side)
            self._check_session_credit(side)
        for stream in self.relay.session._streams:
            for side in self.sides:
                self._check_stream_credit(side, stream)
            self._check_delivery(stream)

    def _check_memory(self, side: PairSide) -> None:
        outbox = side.session._outbox
        data, control = 0, 0
        held: dict[int, int] = {}
        for sent in side.kept():
            if sent.frame[0] == FrameType.DATA:
                assert sent.stream is not None
                data += sent.cost
                held[sent.stream.id] = held.get(sent.stream.id, 0) + sent.cost
                memory = len(sent.frame) if sent.buffer is None else len(sent.buffer)
                assert sent.cost == 256 + memory
            else:
                control += sent.cost
        assert outbox.budget.held == data <= side.profile.replay_limit
        assert outbox.control_held == control
        assert side.cap.held <= side.cap.limit
        for state in side.known_streams():
            assert state.held == held.get(state.id, 0)
            assert not state.free, "a slot is kept for nothing"
        assert len(side.known_streams()) <= side.profile.streams
        assert side.session.statistics().replay_held == data
        if side.cap is not self.other(side).cap:
            assert side.cap.held == data

    def _under_way(self, side: PairSide) -> list[bytes]:
        """Numbered frames that the other side has not received."""
        replay = side.session._outbox.replay
        missing = self.other(side).session.received - replay.base
        assert 0 <= missing <= len(replay._kept)
        return [bytes(sent.frame) for sent in list(replay._kept)[missing:]]

    def _check_session_credit(self, side: PairSide) -> None:
        """Every byte of the window is in exactly one place."""
        peer = self.other(side)
        window = peer.session._receive_credit._session
        queued = sum(
            len(sent.frame) - HEADER_SIZE
            for state in side.known_streams()
            for sent in state.queue
            if sent.frame[0] == FrameType.DATA
        )
        under_way = sum(
            len(frame) - HEADER_SIZE
            for frame in self._under_way(side)
            if frame[0] == FrameType.DATA
        )
        granted = sum(
            int.from_bytes(frame[5:], "big")
            for frame in self._under_way(peer)
            if frame[0] == FrameType.WINDOW and frame[1:5] == bytes(4)
        )
        unread = sum(state._received - state._settled for state in peer.known_streams())
        parts = (
            side.session._send_admission.credit.credit,
            queued,
            under_way,
            unread,
            window._consumed,
            granted,
        )
        assert min(parts) >= 0
        assert sum(parts) == window.size == peer.profile.session_window
        assert unread + window._consumed + window._available == window.size

    def _check_stream_credit(self, side: PairSide, stream: int) -> None:
        peer = self.other(side)
        sending = side.session._streams.get(stream)
        receiving = peer.session._streams.get(stream)
        if sending is None or receiving is None:
            return
        if sending.sending is End.DONE or receiving.receiving is End.DONE:
            return
        number = stream.to_bytes(4, "big")
        queued = sum(
            len(sent.frame) - HEADER_SIZE
            for sent in sending.queue
            if sent.frame[0] == FrameType.DATA
        )
        under_way = sum(
            len(frame) - HEADER_SIZE
            for frame in self._under_way(side)
            if frame[0] == FrameType.DATA and frame[1:5] == number
        )
        granted = sum(
            int.from_bytes(frame[5:], "big")
            for frame in self._under_way(peer)
            if frame[0] == FrameType.WINDOW and frame[1:5] == number
        )
        unread = len(peer.halves[stream].unread)
        window = receiving.window
        parts = sending.credit.credit, queued, under_way, unread, window._consumed, granted
        assert sum(parts) == window.size <= peer.profile.window_limit

    def _check_delivery(self, stream: int) -> None:
        for side in self.sides:
            half, sender = side.halves.get(stream), self.other(side).halves.get(stream)
            if half is not None:
                assert half.delivered <= (0 if sender is None else sender.written)

    def check_ended(self, stream: int) -> None:
        """Both sides are at rest: what had to arrive did."""
        for side in self.sides:
            half = side.halves.get(stream)
            if half is None:
                assert side is self.agent, "a stream the relay never opened"
                continue
            sender = self.other(side).halves.get(stream)
            if sender is None or half.reset:
                continue
            if sender.finished:
                assert half.delivered == sender.written, (side.name, stream)
                assert half.fin_delivered
            elif not sender.reset:
                assert half.reset_came is not None

    def check_at_rest(self) -> None:
        """Nothing is held, nothing is open, all credit is back."""
        for side in self.sides:
            session = side.session
            assert session.open_streams == 0
            assert session.statistics().replay_held == 0
            assert session.statistics().control_held == 0
            assert side.cap.held == 0
            window = self.other(side).session._receive_credit._session
            assert session._send_admission.credit.credit + window._consumed == window.size
            assert session._receive_credit._promised == 0
            assert not session._outbox.replay._kept
