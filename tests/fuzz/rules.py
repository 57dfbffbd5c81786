"""docs/protocol.md as a judge between one session and its peer.

Written from the document and not from `protocol.session.session`: it sees the frames on the wire
and what the session's owner did, and says of each frame of the peer whether the session has to take
it. What the session itself sends is judged too.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from protocol.errors import RemoteProtocolError
from protocol.session.side import Side
from protocol.wire import frame as wire
from protocol.wire.frame import HEADER_SIZE, MAX_WINDOW, FrameType

MAX_LIVE: Final = 1024  # publications
_FROM_RELAY: Final = {FrameType.PUBLISHED, FrameType.REFUSED, FrameType.OPEN}
_FROM_AGENT: Final = {FrameType.PUBLISH, FrameType.UNPUBLISH}
_OF_STREAMS: Final = {FrameType.DATA, FrameType.WINDOW, FrameType.FIN, FrameType.RESET}
_LENGTHS: Final[dict[int, int]] = {
    FrameType.WINDOW: 9,
    FrameType.FIN: 5,
    FrameType.RESET: 6,
    FrameType.ACK: 13,
    FrameType.PING: 21,
    FrameType.PONG: 21,
    FrameType.CLOSE: 6,
}


class Verdict(enum.Enum):
    ALLOWED = enum.auto()
    FORBIDDEN = enum.auto()
    # The stream has ended, and how much of it the session remembers is its own business.
    EITHER = enum.auto()


class Forbidden(Exception):  # noqa: N818 - a verdict
    pass


@dataclass(slots=True)
class Flow:
    """One stream, by what went over the wire; "in" is what the session received."""

    credit_in: int  # that the peer has left
    credit_out: int
    fin_in: bool = False
    fin_out: bool = False
    reset_in: bool = False
    reset_out: bool = False
    abandoned: bool = False  # by the session's owner; its RESET may be on its way yet

    @property
    def ended(self) -> bool:
        return self.reset_in or self.abandoned or (self.fin_in and self.fin_out)


@dataclass(kw_only=True)
class Rules:
    side: Side  # which the session is
    window: int  # of each new stream, granted by the session and by the peer alike
    credit_in: int  # of the session
    credit_out: int
    flows: dict[int, Flow] = field(default_factory=dict)
    last_stream: int = -1
    live: set[int] = field(default_factory=set)  # publications
    last_publication: int = 0
    received: int = 0  # sequenced frames of the peer
    told: int = 0  # of those, as the session last said on this link
    acked: int = 0  # sequenced frames of the session that the peer has acked
    kept: deque[bytes] = field(default_factory=deque)  # and those that it has not
    on_link: int = 0  # of `kept`, those sent on this link
    closed: bool = False

    # The link and the owner

    def may_resume(self, received: int) -> bool:
        return self.acked <= received <= self.acked + len(self.kept)

    def attached(self, received: int) -> None:
        self._ack(received)
        self.on_link = 0
        self.told = self.received
        self.closed = False

    def opened(self, stream: int) -> None:
        self.last_stream = stream
        self.flows[stream] = Flow(self.window, self.window)

    # What the peer sends

    def heard(self, frame: bytes, *, queued: int) -> Verdict:
        """Whether the session has to take `frame`; `queued` is payload that it has not sent yet."""
        try:
            verdict = self._heard(frame, queued)
        except (Forbidden, RemoteProtocolError):
            return Verdict.FORBIDDEN
        if frame[0] <= wire.LAST_SEQUENCED:
            self.received += 1
        return verdict

    def _heard(self, frame: bytes, queued: int) -> Verdict:
        if len(frame) < HEADER_SIZE:
            raise Forbidden
        kind, stream = frame[0], int.from_bytes(frame[1:5], "big")
        if len(frame) != _LENGTHS.get(kind, len(frame)):
            raise Forbidden
        if kind in _OF_STREAMS:
            return self._heard_of_stream(kind, stream, frame, queued)
        if kind == FrameType.OPEN and self.side is Side.AGENT:
            self._heard_open(stream, frame)
            return Verdict.ALLOWED
        if stream:
            raise Forbidden
        if kind in (FrameType.ACK, FrameType.PING, FrameType.PONG):
            self._heard_ack(int.from_bytes(frame[5:13], "big"))
        elif kind in (_FROM_AGENT if self.side is Side.RELAY else _FROM_RELAY):
            self._heard_of_publication(kind, memoryview(frame)[HEADER_SIZE:])
        elif kind != FrameType.CLOSE:
            raise Forbidden
        return Verdict.ALLOWED

    def _heard_ack(self, received: int) -> None:
        if not self.acked <= received <= self.acked + self.on_link:
            raise Forbidden
        self._ack(received)

    def _ack(self, received: int) -> None:
        for _ in range(received - self.acked):
            self.kept.popleft()
        self.on_link -= received - self.acked
        self.acked = received

    def _heard_open(self, stream: int, frame: bytes) -> None:
        publication = wire.Open.decode(memoryview(frame)[HEADER_SIZE:]).publication
        if stream % 2 == 0 or stream <= self.last_stream:
            raise Forbidden
        if not 1 <= publication <= self.last_publication:
            raise Forbidden
        self.opened(stream)

    def _heard_of_publication(self, kind: int, body: memoryview) -> None:
        if kind == FrameType.PUBLISH:
            fresh = wire.Publish.decode(body).publication
            if fresh <= self.last_publication or len(self.live) >= MAX_LIVE:
                raise Forbidden
            self.last_publication = fresh
            self.live.add(fresh)
        elif kind == FrameType.UNPUBLISH:
            withdrawn = wire.Unpublish.decode(body).publication
            if withdrawn not in self.live:
                raise Forbidden
            self.live.remove(withdrawn)
        else:
            decode = wire.Published.decode if kind == FrameType.PUBLISHED else wire.Refused.decode
            if not 1 <= decode(body).publication <= self.last_publication:
                raise Forbidden

    def _heard_of_stream(self, kind: int, stream: int, frame: bytes, queued: int) -> Verdict:
        if kind == FrameType.WINDOW and stream == 0:
            increment = int.from_bytes(frame[5:], "big")
            if increment == 0 or self.credit_out - queued + increment > MAX_WINDOW:
                raise Forbidden
            over = self.credit_out + increment > MAX_WINDOW
            self.credit_out += increment
            return Verdict.EITHER if over else Verdict.ALLOWED
        if stream % 2 == 0 or stream > self.last_stream:
            raise Forbidden
        flow = self.flows.get(stream)
        if kind == FrameType.DATA:
            return self._heard_data(flow, len(frame) - HEADER_SIZE)
        if flow is None:  # ids may be left out
            return Verdict.ALLOWED
        if kind == FrameType.WINDOW:
            return _heard_window(flow, int.from_bytes(frame[5:], "big"), queued)
        if kind == FrameType.RESET:
            flow.reset_in = True
            return Verdict.ALLOWED
        return _heard_fin(flow)

    def _heard_data(self, flow: Flow | None, count: int) -> Verdict:
        if count == 0 or count > self.credit_in:
            raise Forbidden
        self.credit_in -= count
        if flow is None:
            return Verdict.ALLOWED
        if flow.fin_in:
            return _after_fin(flow)
        if flow.ended:
            return Verdict.ALLOWED
        if count > flow.credit_in:
            raise Forbidden
        flow.credit_in -= count
        return Verdict.ALLOWED

    # What the session sends

    def said(self, frame: bytes) -> None:
        assert not self.closed, "something follows CLOSE"
        kind, stream = frame[0], int.from_bytes(frame[1:5], "big")
        if kind > wire.LAST_SEQUENCED:
            self._said_of_link(kind, frame)
            return
        if self.on_link < len(self.kept):
            assert frame == self.kept[self.on_link], "what is sent again is not what was sent"
            self.on_link += 1
            return
        self.kept.append(frame)
        self.on_link += 1
        if kind == FrameType.WINDOW and stream == 0:
            self.credit_in += int.from_bytes(frame[5:], "big")
            assert self.credit_in <= MAX_WINDOW
        elif kind in _OF_STREAMS:
            self._said_of_stream(kind, self.flows[stream], frame)
        else:
            assert kind in (_FROM_RELAY if self.side is Side.RELAY else _FROM_AGENT), (
                f"it sent {kind:#04x}"
            )

    def _said_of_link(self, kind: int, frame: bytes) -> None:
        if kind == FrameType.CLOSE:
            self.closed = True
            return
        told = int.from_bytes(frame[5:13], "big")
        assert self.told <= told <= self.received, (
            "it acks what it did not get, or less than before"
        )
        self.told = told

    def _said_of_stream(self, kind: int, flow: Flow, frame: bytes) -> None:
        assert not flow.reset_out, "something follows RESET"
        if kind == FrameType.WINDOW:
            flow.credit_in += int.from_bytes(frame[5:], "big")
            assert flow.credit_in <= MAX_WINDOW
        elif kind == FrameType.RESET:
            flow.reset_out = True
        else:
            assert not flow.fin_out, "something follows FIN"
            assert not flow.reset_in, "it goes on sending to who does not listen"
            if kind == FrameType.FIN:
                flow.fin_out = True
                return
            count = len(frame) - HEADER_SIZE
            assert 0 < count <= flow.credit_out, "beyond the stream's credit"
            assert count <= self.credit_out, "beyond the session's credit"
            flow.credit_out -= count
            self.credit_out -= count


def _heard_window(flow: Flow, increment: int, queued: int) -> Verdict:
    if flow.ended:
        return Verdict.EITHER if increment == 0 else _within(flow, increment)
    if increment == 0 or flow.credit_out - queued + increment > MAX_WINDOW:
        raise Forbidden
    return _within(flow, increment)


def _within(flow: Flow, increment: int) -> Verdict:
    flow.credit_out += increment
    return Verdict.ALLOWED if flow.credit_out <= MAX_WINDOW else Verdict.EITHER


def _heard_fin(flow: Flow) -> Verdict:
    if flow.fin_in:
        return _after_fin(flow)
    flow.fin_in = not flow.ended
    return Verdict.ALLOWED


def _after_fin(flow: Flow) -> Verdict:
    if flow.ended:
        return Verdict.EITHER
    raise Forbidden
