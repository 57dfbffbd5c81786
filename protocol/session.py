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

A frame is cut when its socket is read, never again: `allowance` is at most one record. It is
numbered when it goes out (`next_frame`), so what waits in a queue may still be overtaken or
dropped.
Order of sending: link-local frames, what a new link has not seen, control frames, window updates,
then the streams by `Scheduler`.

The relay opens streams (odd ids, rising, never reused), the agent publishes services.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from protocol import frame as wire
from protocol.acks import Acks
from protocol.buffers import BufferPool
from protocol.errors import LocalProtocolError, RemoteProtocolError, ResetCode, SessionLost
from protocol.events import (
    DataReceived,
    Event,
    PeerClosing,
    StreamFinished,
    StreamOpened,
    StreamReset,
)
from protocol.frame import HEADER_SIZE, MAX_PAYLOAD, MAX_STREAM, FrameType
from protocol.hello import Limits
from protocol.liveness import Liveness, Verdict
from protocol.outbox import CONTROL_HEADROOM, Outbox
from protocol.publications import Publications
from protocol.replay import Budget, ReplayCap, Sent
from protocol.stream import End, Stream
from protocol.window import ReceiveWindow, SendWindow

# While attached a socket is read only if fewer frames than this of its stream wait: enough to keep
# the link busy, little enough that the scheduler decides what goes next and not a queue.
UNSENT_FRAMES: Final = 2


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
    def __init__(self, *, relay: bool, options: SessionOptions, peer: Limits) -> None:
        """`relay` tells which end this is; `peer` are the limits the other end declared."""
        self._options = options
        self._peer = peer
        self._streams: dict[int, Stream] = {}
        self._last_stream = -1  # highest id opened
        self._publications = Publications()
        self._outbox = Outbox(
            budget=Budget(options.replay_limit, options.replay_cap), pool=options.pool
        )
        self._credit = SendWindow(peer.session_window)
        self._window = ReceiveWindow(options.limits.session_window)
        self._window_due = False
        self._windows_due: dict[int, bool] = {}  # stream id → whether its window may grow
        self._promised = 0  # sum of the open streams' windows, bytes
        self._acks = Acks()
        self._unacked_since: float | None = None
        # PING or PONG → its stamp, CLOSE → its code. One of a kind: the newest says all, and a peer
        # whose PINGs come faster than their answers go out makes us hold nothing.
        self._link_local: dict[FrameType, int] = {}
        self._starved: dict[int, None] = {}  # readers that wait for what all share, in order
        self._ready: list[int] = []
        self._ignored = 0
        self._liveness: Liveness | None = None
        self._record_size = MAX_PAYLOAD
        self._receivers = self._relay_receivers() if relay else self._agent_receivers()

    def _relay_receivers(self) -> dict[int, Callable[[int, memoryview], Event | None]]:
        return self._stream_receivers() | {
            FrameType.PUBLISH: _without_stream(self._publications.on_publish),
            FrameType.UNPUBLISH: _without_stream(self._publications.on_unpublish),
        }

    def _agent_receivers(self) -> dict[int, Callable[[int, memoryview], Event | None]]:
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
        return self._liveness is not None

    @property
    def received(self) -> int:
        """Sequenced frames received: what a resume declares. Fixed while detached."""
        return self._acks.received

    @property
    def liveness(self) -> Liveness:
        if self._liveness is None:
            raise LocalProtocolError("no link is attached")
        return self._liveness

    def attach(self, peer_received: int, now: float) -> None:
        """Go on over a new link whose peer has `peer_received` of our frames.

        Raises SessionLost if that cannot be.
        """
        self._fins_acked(self._outbox.resume(peer_received))
        self._link_local.clear()
        self._acks.settle()  # the handshake told the peer
        self._unacked_since = None
        self._liveness = Liveness(now)

    def detach(self) -> None:
        """The link is gone; readers may fill the budget now."""
        self._liveness = None
        for state in self._streams.values():
            self._unblock(state)

    def close_link(self, code: wire.CloseCode) -> None:
        """Queue a goodbye."""
        self._link_local[FrameType.CLOSE] = code

    def discard(self) -> None:
        """Give back all memory: the session is over, its streams are lost."""
        self._liveness = None
        for state in self._streams.values():
            self._outbox.drop_queue(state)
        self._streams.clear()
        self._starved.clear()
        self._outbox.discard()

    # Publications

    def publish(self, service: str, port: int) -> int:
        """Agent only: ask for `port`; returns the publication's id."""
        request = self._publications.add(service, port)
        self._outbox.queue_control(request.encode())
        return request.publication

    def unpublish(self, publication: int) -> None:
        """Agent only: withdraw; open streams go on."""
        self._outbox.queue_control(self._publications.withdraw(publication).encode())

    def published(self, publication: int, port: int) -> None:
        """Relay only."""
        answer = wire.Published(publication=publication, port=port)
        self._outbox.queue_control(answer.encode())

    def refused(self, publication: int, code: int, reason: str) -> None:
        """Relay only."""
        answer = wire.Refused(publication=publication, code=code, reason=reason)
        self._outbox.queue_control(answer.encode())

    # Streams

    @property
    def record_size(self) -> int:
        """Payload of a full frame, in bytes; smaller on slow links."""
        return self._record_size

    @record_size.setter
    def record_size(self, size: int) -> None:
        self._record_size = size
        # Else a stream would send many records before the next one's turn.
        self._outbox.set_quantum(size)

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    def open(self, publication: int, source: tuple[str, int]) -> int | None:
        """Relay only: open a stream for a visitor from `source`; None at a limit.

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

    def allowance(self, stream: int) -> int:
        """How many bytes `send` takes for `stream` now, at most one record.

        After 0 the stream's id comes out of `take_ready` when asking again may help.
        """
        state = self._streams.get(stream)
        if state is None or state.sending is not End.OPEN:
            return 0
        if not self._has_turn(state):
            state.blocked = True
            return 0
        shared = min(self._outbox.room(state, len(self._streams)), self._credit.credit)
        if shared <= 0:
            self._starved[stream] = None
            return 0
        return min(shared, state.credit.credit, self._record_size)

    def send(self, stream: int, buffer: bytearray, count: int) -> bool:
        """Queue `count` bytes, read into `buffer` from offset HEADER_SIZE on.

        Returns whether the session keeps the buffer. Does nothing for a stream the peer has reset.
        """
        state = self._streams.get(stream)
        if state is None or state.sending is End.DONE:
            return False
        state.check_open_for_sending()
        if not 0 < count <= MAX_PAYLOAD:
            raise LocalProtocolError(f"a frame of {count} bytes")
        state.credit.use(count)
        self._credit.use(count)
        return self._outbox.queue_data(state, buffer, count)

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
            self._abandon_sending(state)
            self._outbox.queue_control(wire.reset(stream, code))
        elif state.receiving is End.OPEN and state.queue:
            self._outbox.queue_end(state, wire.reset(stream, code))
        elif state.receiving is End.OPEN:
            self._outbox.queue_control(wire.reset(stream, code))
        self._abandon_receiving(state)
        self._forget_if_free(state)

    def consumed(self, stream: int, count: int, *, kept_up: bool) -> None:
        """`count` bytes of `stream` were written to the local socket.

        `kept_up`: nothing waits for that socket, so a larger window would help.
        """
        state = self._streams.get(stream)
        if state is None or state.receiving is End.DONE:
            return  # settled when it was abandoned
        state.settle(count)
        self._return_session_credit(count)
        if state.window.consume(count) and state.receiving is End.OPEN:
            self._windows_due[stream] = kept_up

    def fin_delivered(self, stream: int) -> None:
        """The FIN of `stream` was passed to the local socket, after all data."""
        state = self._streams.get(stream)
        if state is None:
            return
        state.fin_delivered()
        self._forget_if_free(state)

    def take_ready(self) -> list[int]:
        """Streams whose `allowance` was 0 and may not be any more."""
        if self._starved and self._credit.credit:
            self._ready += self._take_starved()
        ready, self._ready = self._ready, []
        return ready

    def _take_starved(self) -> list[int]:
        """As many as the room may serve; those that lose the race queue again.

        What was acked last may serve fewer than wait, and those have nothing to read. So when no
        further ack is to come that would wake the rest, all are woken.
        """
        count = len(self._starved)
        if self._outbox.waiting_for_acks:
            count = min(count, self._outbox.budget.left // self._record_size + 1)
        woken = list(islice(self._starved, count))
        for stream in woken:
            del self._starved[stream]
        return woken

    # Sending

    def next_frame(self, now: float) -> bytes | memoryview | None:
        """The next plaintext to seal; None if nothing is to be sent. Only while attached."""
        if self._link_local:
            return self._next_link_local()
        if self._acks.due:
            self._acks.settle()
            return wire.ack(self._acks.received)
        frame = self._outbox.replay.next_again()
        if frame is None:
            sent = self._next_new(now)
            if sent is None:
                return None
            self._outbox.replay.add(sent)
            frame = sent.frame
        if self._unacked_since is None:
            self._unacked_since = now
        return frame

    def _next_link_local(self) -> bytes:
        """Made when it goes out, so that acks never run backwards."""
        kind, value = self._link_local.popitem()
        if kind is FrameType.CLOSE:
            return wire.close(wire.CloseCode(value))
        self._acks.settle()
        encode = wire.ping if kind is FrameType.PING else wire.pong
        return encode(self._acks.received, value)

    def _next_new(self, now: float) -> Sent | None:
        control = self._outbox.next_control() or self._next_window(now)
        if control is not None:
            return control
        sent = self._outbox.next_stream_frame()
        if sent is not None and sent.stream is not None:
            state = sent.stream
            if sent.frame[0] == FrameType.FIN:
                state.fin_sent()
            self._unblock(state)
            self._forget_if_free(state)
        return sent

    def _next_window(self, now: float) -> Sent | None:
        """Window updates are made when they go out, so that one tells all that is due."""
        if self._window_due:
            self._window_due = False
            increment = self._window.take_update(now, 0, grow=False)
            return self._outbox.control(wire.window(0, increment))
        while self._windows_due:
            number, kept_up = self._windows_due.popitem()
            state = self._streams.get(number)
            if state is not None and state.receiving is End.OPEN:
                increment = self._stream_update(state, kept_up, now)
                return self._outbox.control(wire.window(number, increment))
        return None

    def _stream_update(self, state: Stream, kept_up: bool, now: float) -> int:
        # Grown windows leave a quarter of the session's alone: else two streams whose readers stand
        # still (downloads suspended at the laptop) could hold all of it and stop every other one.
        fits = self._promised + state.window.size <= self._window.size * 3 // 4
        before = state.window.size
        increment = state.window.take_update(now, self.liveness.min_rtt, grow=kept_up and fits)
        self._promised += state.window.size - before
        return increment

    # Receiving

    def heard(self, now: float) -> None:
        """Bytes came over the link, whatever they are."""
        self.liveness.heard(now)

    def receive(self, frame: memoryview, now: float) -> Event | None:
        """Take one opened frame. Raises RemoteProtocolError only."""
        kind, stream = wire.split(frame)
        if kind > wire.LAST_SEQUENCED:
            return self._receive_link_local(kind, stream, frame, now)
        receiver = self._receivers.get(kind)
        if receiver is None:
            raise RemoteProtocolError(f"frame of type {kind:#04x} is unknown or not for this end")
        event = receiver(stream, frame)
        self._acks.count(len(frame), now)
        if self._outbox.overfull:
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
            self._link_local[FrameType.PONG] = stamp
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
            self._unacked_since = now if self._outbox.replay.unacked else None

    def _on_data(self, stream: int, frame: memoryview) -> Event | None:
        count = len(frame) - HEADER_SIZE
        if count == 0:
            raise RemoteProtocolError("empty DATA")
        state = self._known(stream)
        self._window.accept(count)
        if self._window.pinched:
            self._window_due = True
        if state is None or state.receiving is End.DONE:
            self._ignored += 1
            self._return_session_credit(count)
            return None
        state.accept(count)
        return DataReceived(stream, frame[HEADER_SIZE:])

    def _on_window(self, stream: int, frame: memoryview) -> Event | None:
        increment = wire.decode_u32(frame)
        if stream == 0:
            self._credit.grant(increment)
            return None
        state = self._known(stream)
        if state is None:
            self._ignored += 1
            return None
        state.credit.grant(increment)
        self._unblock(state)
        return None

    def _on_fin(self, stream: int, frame: memoryview) -> Event | None:
        wire.decode_empty(frame)
        state = self._known(stream)
        if state is None or state.receiving is End.DONE:
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
        self._abandon_sending(state)
        if not finished:
            self._abandon_receiving(state)
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

    def next_deadline(self) -> float:
        """When `handle_deadline` wants to be called; infinity while detached."""
        if self._liveness is None:
            return math.inf
        silence = self._liveness.deadline(
            streams=bool(self._streams), unacked_since=self._unacked_since
        )
        return min(silence, self._acks.deadline)

    def handle_deadline(self, now: float) -> Verdict:
        """Do what is due; afterwards send what `next_frame` gives."""
        self._acks.check(now)
        verdict = self.liveness.judge(
            now, streams=bool(self._streams), unacked_since=self._unacked_since
        )
        if verdict in (Verdict.PING, Verdict.SUSPECT):
            self._queue_ping(now)
        return verdict

    def probe(self, now: float) -> None:
        """Ask for a sign of life at once, unless one is being waited for."""
        if not self.liveness.questioned:
            self.liveness.question(now)
            self._queue_ping(now)

    def _queue_ping(self, now: float) -> None:
        self._link_local[FrameType.PING] = self.liveness.stamp(now)

    def statistics(self) -> SessionStatistics:
        return SessionStatistics(
            attached=self.attached,
            streams=len(self._streams),
            replay_held=self._outbox.budget.held,
            control_held=self._outbox.control_held,
            frames_received=self._acks.received,
            frames_ignored=self._ignored,
            rtt=self._liveness.rtt if self._liveness else 0.0,
        )

    # Bookkeeping

    def _add_stream(self, number: int) -> None:
        self._last_stream = number
        window = ReceiveWindow(self._options.limits.stream_window, limit=self._options.window_limit)
        self._promised += window.size
        credit = SendWindow(self._peer.stream_window)
        self._streams[number] = Stream(number, credit, window)

    def _forget_if_free(self, state: Stream) -> None:
        if state.free and self._streams.pop(state.id, None) is not None:
            self._promised -= state.window.size
            self._starved.pop(state.id, None)

    def _fins_acked(self, streams: list[Stream]) -> None:
        for state in streams:
            state.fin_acked()
            self._forget_if_free(state)

    def _abandon_sending(self, state: Stream) -> None:
        self._credit.refund(self._outbox.drop_queue(state))
        state.sending = End.DONE

    def _abandon_receiving(self, state: Stream) -> None:
        if state.receiving is not End.DONE:
            state.receiving = End.DONE
            self._return_session_credit(state.settle_all())

    def _return_session_credit(self, count: int) -> None:
        if count and (self._window.consume(count) or self._window.pinched):
            self._window_due = True

    def _has_turn(self, state: Stream) -> bool:
        """Whether the stream itself lets its socket be read."""
        if not state.credit.credit:
            return False
        return self._liveness is None or len(state.queue) < UNSENT_FRAMES

    def _unblock(self, state: Stream) -> None:
        if state.blocked and self._has_turn(state):
            state.blocked = False
            self._ready.append(state.id)


def _without_stream(
    receiver: Callable[[memoryview], Event | None],
) -> Callable[[int, memoryview], Event | None]:
    def receive(stream: int, frame: memoryview) -> Event | None:
        if stream:
            raise RemoteProtocolError(f"a publication's frame names stream {stream}")
        return receiver(frame[HEADER_SIZE:])

    return receive
