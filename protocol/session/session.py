"""One side of a session: streams, numbering, credit, replay. Outlives its links.

Theory of operation. The owner (protocol.transport.endpoint) calls down and gets events back;
nothing here waits, logs or reads a clock.

    local socket readable   allowance() → read that much → send()
    local socket written    consumed();  FIN written → fin_delivered()
    link has room           next_frame() until None, sealing each
    link has a record       receive(frame) → an event or None
    link comes or goes      attach(), detach()
    time                    next_deadline(), handle_deadline()
    afterwards              take_ready(): streams whose reader may try again

A frame is cut when its socket is read, never again. It is numbered when it goes out (`next_frame`),
so what waits in a queue may still be overtaken or dropped.

Order of sending: link-local frames, what a new link has not seen, control frames, window updates,
then the streams by `Scheduler`.

One end opens streams (odd ids, rising, never reused), the other publishes services (`side`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.errors import LocalProtocolError, RemoteProtocolError, ResetCode, SessionLost
from protocol.session.acks import Acks
from protocol.session.events import (
    DataReceived,
    Event,
    PeerClosing,
    StreamFinished,
    StreamOpened,
    StreamReset,
)
from protocol.session.link_state import LinkState
from protocol.session.liveness import Liveness, Verdict
from protocol.session.outbox import CONTROL_HEADROOM, Outbox
from protocol.session.publications import Publications
from protocol.session.receive_credit import ReceiveCredit
from protocol.session.replay import Budget, ReplayCap
from protocol.session.send_admission import SendAdmission
from protocol.session.side import Side
from protocol.session.stream import End, Sent, Stream
from protocol.session.window import ReceiveWindow, SendWindow
from protocol.wire import frame as wire
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import HEADER_SIZE, MAX_STREAM, FrameType
from protocol.wire.hello import Limits
from protocol.wire.identifiers import SocketAddress
from protocol.wire.noise import Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """What this side allows itself and its peer. Sizes in bytes."""

    limits: Limits  # told to the peer
    window_limit: int  # up to which a stream's receive window may grow
    replay_limit: int  # memory for queued and unacked frames
    replay_cap: ReplayCap  # of all sessions of this process
    pool: BufferPool = field(default_factory=BufferPool)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatistics:
    attached: bool
    streams: int
    replay_held: int  # bytes
    control_held: int  # bytes
    frames_received: int
    frames_ignored: int  # for streams that were gone
    rtt: float  # seconds, 0 if not measured


class Session:
    def __init__(self, *, side: Side, options: SessionOptions, peer: Limits) -> None:
        """`side` is this end; `peer` are the limits that the other end declared."""
        self._options = options
        self._peer = peer
        self._streams: dict[int, Stream] = {}
        self._last_stream = -1  # highest id opened
        self._publications = Publications()
        self._outbox = Outbox(
            budget=Budget(options.replay_limit, options.replay_cap), pool=options.pool
        )
        self._send_admission = SendAdmission(self._outbox, peer.session_window)
        self._receive_credit = ReceiveCredit(options.limits.session_window)
        self._acks = Acks()
        self._link: LinkState | None = None
        self._ignored = 0
        role = side.value
        self._pings_first = role.pings_first
        self._receivers = (
            self._opener_receivers() if role.opens_streams else self._publisher_receivers()
        )

    def _opener_receivers(self) -> dict[int, Callable[[int, memoryview], Event | None]]:
        return self._stream_receivers() | {
            FrameType.PUBLISH: _without_stream(self._publications.on_publish),
            FrameType.UNPUBLISH: _without_stream(self._publications.on_unpublish),
        }

    def _publisher_receivers(self) -> dict[int, Callable[[int, memoryview], Event | None]]:
        return self._stream_receivers() | {
            FrameType.OPEN: self._on_open,
            FrameType.PUBLISHED: _without_stream(self._publications.on_published),
            FrameType.REFUSED: _without_stream(self._publications.on_refused),
        }

    def _stream_receivers(self) -> dict[int, Callable[[int, memoryview], Event | None]]:
        return {
            FrameType.DATA: self._on_data,
            FrameType.WINDOW: self._on_window,
            FrameType.FIN: self._on_fin,
            FrameType.RESET: self._on_reset,
        }

    # Links

    @property
    def attached(self) -> bool:
        return self._link is not None

    @property
    def received(self) -> int:
        """Sequenced frames received: what a resume declares. Fixed while detached."""
        return self._acks.received

    @property
    def liveness(self) -> Liveness:
        return self._current_link().liveness

    def attach(self, peer_received: int, now: float) -> None:
        """Go on over a new link whose peer has `peer_received` of our frames.

        Raises SessionLost if that cannot be.
        """
        self._fins_acked(self._outbox.resume(peer_received))
        self._link = LinkState(self._acks, now, pings_first=self._pings_first)
        self._send_admission.attached = True

    def detach(self) -> None:
        """The link is gone; readers may fill the budget now."""
        self._link = None
        self._send_admission.attached = False
        for state in self._streams.values():
            self._send_admission.unblock(state)

    def close_link(self, code: wire.CloseCode) -> None:
        """Queue a goodbye, if there is a link."""
        if self._link is not None:
            self._link.close(code)

    def discard(self) -> None:
        """Give back all memory: the session is over, its streams are lost."""
        self._link = None
        for state in self._streams.values():
            self._outbox.drop_queue(state)
            self._send_admission.closed(state)
        self._streams.clear()
        self._outbox.discard()

    # Publications

    def publish(self, service: str, port: int) -> int:
        """For the end that publishes: ask for `port`; returns the publication's id."""
        request = self._publications.add(service, port)
        self._outbox.queue_control(request.encode())
        return request.publication

    def unpublish(self, publication: int) -> None:
        """For the end that publishes: withdraw; open streams go on."""
        self._outbox.queue_control(self._publications.withdraw(publication).encode())

    def published(self, publication: int, port: int) -> None:
        """For the end that opens streams: the port that was asked for is open."""
        answer = wire.Published(publication=publication, port=port)
        self._outbox.queue_control(answer.encode())

    def refused(self, publication: int, code: int, reason: str) -> None:
        """For the end that opens streams: the port that was asked for stays closed."""
        answer = wire.Refused(publication=publication, code=code, reason=reason)
        self._outbox.queue_control(answer.encode())

    # Streams

    @property
    def record_size(self) -> int:
        """Payload of a full frame, in bytes; smaller on slow links."""
        return self._send_admission.record_size

    @record_size.setter
    def record_size(self, size: int) -> None:
        self._send_admission.record_size = size

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    @property
    def streams(self) -> tuple[int, ...]:
        """Their ids, in the order in which they were opened."""
        return tuple(self._streams)

    def open(self, publication: int, source: SocketAddress) -> int | None:
        """For the end that opens streams: open one for a visitor from `source`; None at a limit.

        Raises SessionLost when the ids are used up.
        """
        if len(self._streams) >= min(self._peer.streams, self._options.limits.streams):
            return None
        if self._outbox.control_held > CONTROL_HEADROOM // 2:
            return None
        number = self._last_stream + 2
        if number > MAX_STREAM:
            raise SessionLost("stream ids are used up")
        request = wire.Open(publication=publication, source=source)
        self._outbox.queue_control(request.encode(number))
        self._add_stream(number)
        return number

    def allowance(self, stream: int, frames: int = 1) -> int:
        """How many bytes `send` takes for `stream` now, in up to `frames` full frames.

        After 0 the stream's id comes out of `take_ready` when asking again may help.
        """
        state = self._streams.get(stream)
        return (
            0
            if state is None
            else self._send_admission.allowance(state, len(self._streams), frames)
        )

    def send(self, stream: int, buffers: list[bytearray], count: int) -> list[bytearray]:
        """Queue `count` bytes, read into `buffers`, each from offset HEADER_SIZE on to its end.

        Returns the buffers it does not keep. Does nothing for a stream the peer has reset.
        """
        state = self._streams.get(stream)
        if state is None or state.sending is End.DONE:
            return buffers
        state.check_open_for_sending()
        return self._send_admission.queue(state, buffers, count)

    def finish(self, stream: int) -> None:
        """Half-close: FIN follows what is queued. Nothing for a stream the peer has reset."""
        state = self._streams.get(stream)
        if state is None or state.sending is End.DONE:
            return
        state.fin_queued()
        self._outbox.queue_end(state, wire.fin(stream))

    def reset(self, stream: int, code: ResetCode) -> None:
        """The local socket is gone: end both directions, but never what `finish` ended."""
        state = self._streams.get(stream)
        if state is None:
            return
        if state.sending is End.OPEN:
            self._send_admission.abandon(state)
            self._outbox.queue_control(wire.reset(stream, code))
        elif state.receiving is End.OPEN and state.queue:
            self._outbox.queue_end(state, wire.reset(stream, code))
        elif state.receiving is End.OPEN:
            self._outbox.queue_control(wire.reset(stream, code))
        self._receive_credit.abandon(state)
        self._forget_if_free(state)

    def consumed(self, stream: int, count: int, *, kept_up: bool) -> None:
        """`count` bytes of `stream` were written to the local socket.

        `kept_up`: nothing waits for that socket, so a larger window would help.
        """
        state = self._streams.get(stream)
        if state is not None and state.receiving is not End.DONE:  # else settled when abandoned
            self._receive_credit.consumed(state, count, kept_up=kept_up)

    def fin_delivered(self, stream: int) -> None:
        """The FIN of `stream` was passed to the local socket, after all data."""
        state = self._streams.get(stream)
        if state is None:
            return
        state.fin_delivered()
        self._forget_if_free(state)

    def take_ready(self) -> list[int]:
        """Streams whose `allowance` was 0 and may not be any more."""
        return self._send_admission.take_ready()

    # Sending

    def next_frame(self, now: float) -> Buffer | None:
        """The next plaintext to seal; None if nothing is to be sent. Only while attached."""
        link = self._link
        if link is None:
            raise LocalProtocolError("no link is attached")
        # Asked of each source before it is called: this runs for every record, and mostly all but
        # the streams are empty.
        if link.pending or self._acks.due or link.closed:
            return link.next_frame()
        outbox = self._outbox
        replay = outbox.replay
        if replay.again:
            frame = replay.next_again()
        else:
            sent = None
            if outbox.control_queue or self._receive_credit.due:
                sent = self._next_control(link, now)
            if sent is None:
                sent = self._next_of_streams()
            if sent is None:
                return None
            replay.add(sent)
            frame = sent.frame
        if link.unacked_since is None:
            link.sequenced_sent(now)
        return frame

    def _next_control(self, link: LinkState, now: float) -> Sent | None:
        outbox = self._outbox
        if outbox.control_queue:
            return outbox.control_queue.popleft()
        update = self._receive_credit.next_update(now, link.liveness.min_rtt)
        return outbox.control(update) if update is not None else None

    def _next_of_streams(self) -> Sent | None:
        state = self._outbox.scheduler.next()
        if state is None:
            return None
        sent = state.queue.popleft()
        if state.sending is not End.OPEN:
            if sent.frame[0] == FrameType.FIN:
                state.fin_sent()
            self._forget_if_free(state)
        if state.blocked:
            self._send_admission.unblock(state)
        return sent

    # Receiving

    def heard(self, now: float) -> None:
        """Bytes came over the link, whatever they are."""
        link = self._current_link()
        if link.liveness.questioned:
            link.nearer = True  # the next question may come before the end of this one's patience
        link.liveness.heard(now)

    def receive(self, frame: memoryview, now: float) -> Event | None:
        """Take one opened frame. Raises RemoteProtocolError only."""
        kind, stream = wire.split(frame)
        if kind > wire.LAST_SEQUENCED:
            return self._receive_link_local(kind, stream, frame, now)
        receiver = self._receivers.get(kind)
        if receiver is None:
            raise RemoteProtocolError(f"frame of type {kind:#04x} is unknown or not for this end")
        event = receiver(stream, frame)
        if self._acks.count(len(frame), now) and self._link is not None:
            self._link.nearer = True
        if self._outbox.control_held > CONTROL_HEADROOM:
            raise RemoteProtocolError("the peer lets control frames pile up unacked")
        return event

    def _receive_link_local(
        self, kind: int, stream: int, frame: memoryview, now: float
    ) -> Event | None:
        if stream:
            raise RemoteProtocolError(f"frame of type {kind:#04x} on stream {stream}")
        if kind == FrameType.ACK:
            self._on_ack(wire.decode_u64(frame), now)
        elif kind == FrameType.PING:
            received, stamp = wire.decode_u64_u64(frame)
            self._on_ack(received, now)
            self._current_link().pong(stamp)
        elif kind == FrameType.PONG:
            received, stamp = wire.decode_u64_u64(frame)
            self._on_ack(received, now)
            self.liveness.answered(stamp, now)
        elif kind == FrameType.CLOSE:
            return PeerClosing(wire.decode_close(frame))
        else:
            raise RemoteProtocolError(f"frame of type {kind:#04x} is unknown or out of place")
        return None

    def _on_ack(self, received: int, now: float) -> None:
        before = self._outbox.replay.base
        self._fins_acked(self._outbox.ack(received))
        if self._outbox.replay.base != before:
            self._current_link().acked(now, more=self._outbox.replay.unacked)

    def _on_data(self, stream: int, frame: memoryview) -> Event | None:
        count = len(frame) - HEADER_SIZE
        if count == 0:
            raise RemoteProtocolError("empty DATA")
        state = self._known(stream)
        self._receive_credit.accept(count)
        if state is None or state.abandoned:
            self._ignored += 1
            self._receive_credit.returned(count)
            return None
        state.accept(count)
        return DataReceived(stream, frame[HEADER_SIZE:])

    def _on_window(self, stream: int, frame: memoryview) -> Event | None:
        increment = wire.decode_u32(frame)
        if stream == 0:
            self._send_admission.credit.grant(increment)
            return None
        state = self._known(stream)
        if state is None:
            self._ignored += 1
            return None
        state.credit.grant(increment)
        self._send_admission.unblock(state)
        return None

    def _on_fin(self, stream: int, frame: memoryview) -> Event | None:
        wire.decode_empty(frame)
        state = self._known(stream)
        if state is None or state.abandoned:
            self._ignored += 1
            return None
        state.fin_came()
        return StreamFinished(stream)

    def _on_reset(self, stream: int, frame: memoryview) -> Event | None:
        code = wire.decode_u8(frame)
        state = self._known(stream)
        if state is None:
            self._ignored += 1
            return None
        finished = state.receiving is not End.OPEN
        self._send_admission.abandon(state)
        if not finished:
            self._receive_credit.abandon(state)
        self._forget_if_free(state)
        return StreamReset(stream, code, finished=finished)

    def _on_open(self, stream: int, frame: memoryview) -> Event | None:
        opened = wire.Open.decode(frame[HEADER_SIZE:])
        if stream % 2 == 0 or stream <= self._last_stream:
            raise RemoteProtocolError(f"OPEN of stream {stream} after {self._last_stream}")
        live = self._publications.is_live(opened.publication)
        # Too many is no error: the relay may not know yet which slots are still taken here.
        full = len(self._streams) >= self._options.limits.streams
        if full or not live:
            self._last_stream = stream
            code = ResetCode.REFUSED if live else ResetCode.SERVICE_GONE
            self._outbox.queue_control(wire.reset(stream, code))
            return None
        self._add_stream(stream)
        return StreamOpened(stream, opened)

    def _known(self, stream: int) -> Stream | None:
        """None for a stream that is gone; one that never was is an error."""
        state = self._streams.get(stream)
        if state is None and (stream > self._last_stream or stream % 2 == 0):
            raise RemoteProtocolError(f"frame for stream {stream}, which was never opened")
        return state

    # Time

    @property
    def deadline_nearer(self) -> bool:
        """Whether `next_deadline` may be earlier than when it was last asked for."""
        return self._link is not None and self._link.nearer

    def next_deadline(self) -> float:
        """When `handle_deadline` wants to be called; infinity while detached."""
        if self._link is None:
            return math.inf
        return self._link.deadline(streams=bool(self._streams))

    def handle_deadline(self, now: float) -> Verdict:
        """Do what is due; afterwards send what `next_frame` gives."""
        return self._current_link().handle_deadline(now, streams=bool(self._streams))

    def probe(self, now: float) -> None:
        """Ask for a sign of life at once, unless one is being waited for."""
        self._current_link().probe(now)

    def statistics(self) -> SessionStatistics:
        return SessionStatistics(
            attached=self.attached,
            streams=len(self._streams),
            replay_held=self._outbox.budget.held,
            control_held=self._outbox.control_held,
            frames_received=self._acks.received,
            frames_ignored=self._ignored,
            rtt=self._link.liveness.rtt if self._link else 0.0,
        )

    # Bookkeeping

    def _current_link(self) -> LinkState:
        if self._link is None:
            raise LocalProtocolError("no link is attached")
        return self._link

    def _add_stream(self, number: int) -> None:
        self._last_stream = number
        window = ReceiveWindow(self._options.limits.stream_window, limit=self._options.window_limit)
        state = Stream(number, SendWindow(self._peer.stream_window), window)
        self._streams[number] = state
        self._receive_credit.opened(state)
        if self._link is not None:
            self._link.nearer = True  # with a stream, silence is questioned sooner

    def _forget_if_free(self, state: Stream) -> None:
        if state.free and self._streams.pop(state.id, None) is not None:
            self._receive_credit.closed(state)
            self._send_admission.closed(state)

    def _fins_acked(self, streams: list[Stream]) -> None:
        for state in streams:
            state.fin_acked()
            self._forget_if_free(state)


def _without_stream(
    receiver: Callable[[memoryview], Event | None],
) -> Callable[[int, memoryview], Event | None]:
    def receive(stream: int, frame: memoryview) -> Event | None:
        if stream:
            raise RemoteProtocolError(f"a publication's frame names stream {stream}")
        return receiver(frame[HEADER_SIZE:])

    return receive
