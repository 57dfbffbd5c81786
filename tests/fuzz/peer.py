"""One session, and a peer that holds the keys and may send anything.

Input: which side, then steps: a frame of the peer, as it comes or made from a few numbers, or
something that the session's owner does. `rules` says of each frame whether the session has to take
it; what it holds stays bounded whatever comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from unittest import mock

from protocol.errors import RemoteProtocolError, ResetCode, SessionLost
from protocol.session import session as session_module
from protocol.session.events import (
    DataReceived,
    Event,
    PublishRequested,
    StreamFinished,
    StreamOpened,
    StreamReset,
)
from protocol.session.liveness import Verdict as Life
from protocol.session.replay import ReplayCap
from protocol.session.session import Session, SessionOptions
from protocol.session.side import Side
from protocol.wire import frame as wire
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import HEADER_SIZE, MAX_PAYLOAD, CloseCode, FrameType
from protocol.wire.record import FRAME_HEADER
from tests.fuzz.choices import Choices
from tests.fuzz.rules import Rules, Verdict
from tests.support.pair import SMALL, SOURCE

# So few that an input reaches them; the real one takes 30,000 frames.
CONTROL_HEADROOM: Final = 4096
_pool = BufferPool()


@dataclass(slots=True)
class Socket:
    """What the owner of a stream knows of it."""

    unread: int = 0
    fin_came: bool = False
    fin_delivered: bool = False
    finished: bool = False
    over: bool = False


class Trial:
    def __init__(self, side: Side) -> None:
        self.side = side
        self.now = 1000.0
        self.cap = ReplayCap(SMALL.cap_limit)
        options = SessionOptions(
            limits=SMALL.limits(),
            window_limit=SMALL.window_limit,
            replay_limit=SMALL.replay_limit,
            replay_cap=self.cap,
            pool=_pool,
        )
        self.session = Session(side=side, options=options, peer=SMALL.limits())
        self.rules = Rules(
            side=side,
            window=SMALL.stream_window,
            credit_in=SMALL.session_window,
            credit_out=SMALL.session_window,
        )
        self.sockets: dict[int, Socket] = {}
        self.over = False
        self.session.attach(0, self.now)

    # The peer

    def receive(self, frame: bytes) -> None:
        session = self.session
        if not session.attached:
            return
        verdict = self.rules.heard(frame, queued=self._queued())
        session.heard(self.now)
        try:
            event = session.receive(memoryview(frame), self.now)
        except RemoteProtocolError:
            piled_up = session.statistics().control_held > CONTROL_HEADROOM
            assert verdict is not Verdict.ALLOWED or piled_up, "it refused a frame that is right"
            self.end()
            return
        assert verdict is not Verdict.FORBIDDEN, "it took a frame that is wrong"
        if frame[0] == FrameType.OPEN and event is None:
            self._was_refused(int.from_bytes(frame[1:5], "big"))
        if event is not None:
            self.on_event(event, frame)

    def _queued(self) -> int:
        return sum(
            len(sent.frame) - HEADER_SIZE
            for state in self.session._streams.values()
            for sent in state.queue
            if sent.frame[0] == FrameType.DATA
        )

    def _was_refused(self, stream: int) -> None:
        full = self.session.open_streams >= SMALL.streams
        publications = self.session._publications
        assert full or len(publications._live) < publications._last, "a visitor is turned away"
        self.rules.flows[stream].abandoned = True

    def on_event(self, event: Event, frame: bytes) -> None:
        match event:
            case StreamOpened(stream, _):
                assert stream not in self.sockets
                self.sockets[stream] = Socket()
            case DataReceived(stream, data):
                socket = self.sockets[stream]
                assert not socket.over
                assert not socket.fin_came
                assert data == frame[HEADER_SIZE:]
                socket.unread += len(data)
            case StreamFinished(stream):
                assert not self.sockets[stream].over
                assert not self.sockets[stream].fin_came
                self.sockets[stream].fin_came = True
            case StreamReset(stream, _, finished):
                socket = self.sockets[stream]
                assert finished == (socket.fin_came or socket.over)
                socket.finished = True
                if not finished:
                    socket.unread = 0
                    socket.over = True
            case PublishRequested(publish):
                assert self.side is Side.RELAY
                assert publish.publication == self.rules.last_publication

    def end(self) -> None:
        """The session is over: all that it held is given back."""
        self.over = True
        self.session.discard()
        statistics = self.session.statistics()
        assert statistics.replay_held == statistics.control_held == self.cap.held == 0
        assert self.session.open_streams == 0

    # The owner

    def open(self, publication: int) -> None:
        stream = self.session.open(publication, SOURCE)
        if stream is None:
            full = self.session.open_streams >= SMALL.streams
            assert full or self.session.statistics().control_held > CONTROL_HEADROOM // 2
            return
        assert stream % 2 == 1
        assert stream > self.rules.last_stream
        self.rules.opened(stream)
        self.sockets[stream] = Socket()

    def publish(self, port: int) -> None:
        if len(self.rules.live) < 8:
            self.rules.last_publication = self.session.publish("ssh", port)
            self.rules.live.add(self.rules.last_publication)

    def unpublish(self, index: int) -> None:
        if self.rules.live:
            publication = sorted(self.rules.live)[index % len(self.rules.live)]
            self.rules.live.remove(publication)
            self.session.unpublish(publication)

    def send(self, stream: int, count: int) -> None:
        socket = self.sockets.get(stream)
        allowance = self.session.allowance(stream)
        assert allowance <= MAX_PAYLOAD
        count = min(count, allowance)
        if count and socket is not None:
            assert not socket.over
            assert not socket.finished
            buffers = [_pool.take()]
            for spare in self.session.send(stream, buffers, count):
                _pool.give(spare)

    def finish(self, stream: int) -> None:
        socket = self.sockets.get(stream)
        if socket is not None and not (socket.over or socket.finished):
            socket.finished = True
            self.session.finish(stream)

    def reset(self, stream: int) -> None:
        socket = self.sockets.get(stream)
        if socket is not None and not socket.over:
            socket.over = True
            socket.unread = 0
            self.rules.flows[stream].abandoned = True
            self.session.reset(stream, ResetCode.ABORTED)

    def consume(self, stream: int, count: int, *, kept_up: bool) -> None:
        socket = self.sockets.get(stream)
        if socket is None or socket.over:
            return
        count = min(count, socket.unread)
        if count:
            socket.unread -= count
            self.session.consumed(stream, count, kept_up=kept_up)
        if socket.fin_came and not socket.unread and not socket.fin_delivered:
            socket.fin_delivered = True
            self.session.fin_delivered(stream)

    def flush(self, count: int) -> None:
        for _ in range(count):
            frame = self.session.next_frame(self.now) if self.session.attached else None
            if frame is None:
                return
            self.rules.said(bytes(frame))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        due = self.session.attached and self.now >= self.session.next_deadline()
        if due and self.session.handle_deadline(self.now) is Life.DEAD:
            self.session.detach()

    def attach(self, received: int) -> None:
        self.session.detach()
        may = self.rules.may_resume(received)
        try:
            self.session.attach(received, self.now)
        except SessionLost:
            assert not may
            self.end()
        else:
            assert may, "it resumed from what was never sent"
            self.rules.attached(received)

    # What must hold

    def check(self) -> None:
        session, statistics = self.session, self.session.statistics()
        assert statistics.replay_held <= SMALL.replay_limit
        # The last straw is one frame, and what the owner queues is his own business.
        assert self.over or statistics.frames_received == self.rules.received
        assert session.open_streams <= SMALL.streams
        assert sum(socket.unread for socket in self.sockets.values()) <= SMALL.session_window
        for stream, flow in self.rules.flows.items():
            assert flow.ended or self.over or stream in session._streams, "a stream is forgotten"
        for stream in session.take_ready():
            assert stream in self.sockets


# Steps: each takes the trial and what follows in the input.


def _number(choices: Choices) -> int:
    """A small number as one byte, any u32 as five."""
    small = choices.number()
    return small if small < 250 else choices.number(4)


def _raw(trial: Trial, choices: Choices) -> None:
    trial.receive(choices.framed())


def _data(trial: Trial, choices: Choices) -> None:
    stream, count = _number(choices), choices.number(2)
    trial.receive(wire.data_header(stream) + bytes(min(count, MAX_PAYLOAD)))


def _window(trial: Trial, choices: Choices) -> None:
    trial.receive(wire.window(_number(choices), _number(choices)))


def _fin(trial: Trial, choices: Choices) -> None:
    trial.receive(wire.fin(_number(choices)))


def _reset(trial: Trial, choices: Choices) -> None:
    trial.receive(wire.reset(_number(choices), choices.number()))


def _acks(trial: Trial, choices: Choices) -> None:
    kind, received = choices.below(3), trial.rules.acked + _number(choices)
    if kind == 0:
        trial.receive(wire.ack(received))
    else:
        encode = wire.ping if kind == 1 else wire.pong
        trial.receive(encode(received, _number(choices)))


def _publication(trial: Trial, choices: Choices) -> None:
    which, number = choices.below(3), _number(choices)
    if trial.side is Side.RELAY:
        made = wire.Publish(publication=number, service="ssh", port=22)
        trial.receive(made.encode() if which else wire.Unpublish(publication=number).encode())
    elif which == 0:
        trial.receive(wire.Open(publication=number, source=SOURCE).encode(_number(choices)))
    elif which == 1:
        trial.receive(wire.Published(publication=number, port=22).encode())
    else:
        trial.receive(wire.Refused(publication=number, code=1, reason="").encode())


def _own_publication(trial: Trial, choices: Choices) -> None:
    which, number = choices.below(4), choices.number()
    if trial.side is Side.AGENT:
        if which:
            trial.publish(1 + number)
        else:
            trial.unpublish(number)
    elif last := trial.rules.last_publication:
        publication = 1 + number % last
        if which == 0:
            trial.session.published(publication, 22)
        elif which == 1:
            trial.session.refused(publication, 1, "held")
        else:
            trial.open(publication)


def _own_send(trial: Trial, choices: Choices) -> None:
    trial.send(choices.number(), choices.number(2))


def _own_end(trial: Trial, choices: Choices) -> None:
    end = trial.reset if choices.flag() else trial.finish
    end(choices.number())


def _own_consume(trial: Trial, choices: Choices) -> None:
    trial.consume(choices.number(), choices.number(2), kept_up=choices.flag())


def _flush(trial: Trial, choices: Choices) -> None:
    trial.flush(choices.number() or 1000)


def _tick(trial: Trial, choices: Choices) -> None:
    trial.tick(choices.number(2) / 100)


def _link(trial: Trial, choices: Choices) -> None:
    match choices.below(4):
        case 0:
            trial.attach(trial.rules.acked + _number(choices))
        case 1:
            trial.session.detach()
        case 2 if trial.session.attached:
            trial.session.probe(trial.now)
        case 3:
            trial.session.close_link(CloseCode.RESTARTING)


def _close(trial: Trial, choices: Choices) -> None:
    trial.receive(FRAME_HEADER.pack(FrameType.CLOSE, 0) + choices.piece(1))


STEPS: Final = (
    _raw,
    _data,
    _window,
    _fin,
    _reset,
    _acks,
    _publication,
    _close,
    _own_publication,
    _own_send,
    _own_end,
    _own_consume,
    _flush,
    _tick,
    _link,
)


def fuzz_one(data: bytes) -> None:
    choices = Choices(data)
    with mock.patch.object(session_module, "CONTROL_HEADROOM", CONTROL_HEADROOM):
        trial = Trial(Side.RELAY if choices.flag() else Side.AGENT)
        while choices and not trial.over:
            STEPS[choices.below(len(STEPS))](trial, choices)
            trial.check()
        if not trial.over:
            trial.flush(1000)
            trial.check()
