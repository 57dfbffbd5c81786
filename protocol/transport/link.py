"""One TCP connection with its keys, carrying one session.

Everything that is sent goes through `flush`, which never waits: it seals what the session gives and
sends until the socket is full, or holds as much unsent as the path's speed allows (`Pace`). Only
then does the writer task take over, and until it is done `flush` does nothing. So no cancelled task
can tear a record, and order on the wire is the order in which the session numbered its frames.

Three tasks: reader, writer (asleep but for a full socket), timer. A task that was about to run when
the link ended does run once more, so each looks at `_lost` after it has waited: the session may be
carried by another link by then.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Final

import trio

from protocol.errors import LinkLost, ProtocolError, RemoteProtocolError, SessionLost
from protocol.session.events import DataReceived, Event
from protocol.session.liveness import Verdict
from protocol.session.send_admission import BURST_FRAMES
from protocol.session.session import Session
from protocol.transport.pace import INTERVAL, Pace
from protocol.transport.sockets import limit_unsent, reset_on_close
from protocol.transport.tcpinfo import tcp_info, unacked, unsent
from protocol.wire.buffers import Pool
from protocol.wire.identifiers import SocketAddress
from protocol.wire.noise import Buffer
from protocol.wire.record import MAX_RECORD, RECORD_OVERHEAD, Opener, Sealer, lazy_area

log = logging.getLogger(__name__)

# Eight full records a send: fewer cost a system call each, more spill the L2 cache.
BATCH: Final = BURST_FRAMES * MAX_RECORD
# Sealed records between links share these; a link holds one only while its socket is full.
_batches: Final = Pool(lazy_area, BATCH, spare=4)
# Between looks while draining: there is no event for it, and it is over in a round trip.
_DRAIN_POLL: Final = 0.01
# A reader that never runs dry must let others in: 2 ms, or this much, whichever is first.
TURN_SECONDS: Final = 0.002
TURN_BYTES: Final = 256 * 1024
# One receive may bring 10,000 of the smallest frames, and some make work (a PUBLISH asks the
# registry, an OPEN dials), so the clock is also looked at after so many.
TURN_FRAMES: Final = 16


class Link:
    def __init__(self, sock: socket.socket, sealer: Sealer, opener: Opener) -> None:
        self._sock = sock
        self._sealer = sealer
        self._opener = opener
        self._session: Session | None = None
        self._deliver: Callable[[Event], None]
        self._deliver_data: Callable[[int, list[memoryview]], None]
        self._pending: memoryview | None = None  # sealed, not yet taken by the socket
        self._buffer: memoryview | None = None  # what `_pending` points into
        self._drained = False  # the last receive took all there was
        self._waiting = False  # for the socket; the writer's turn
        self._mute = False  # nothing can be sent any more, yet there is something to read
        self._unsent = 0  # at most so many bytes in the socket were not sent once
        # A batch below this has room for one more record.
        self._pace = Pace(BATCH - MAX_RECORD + 1)
        self._look_at = 0.0  # when the kernel's view of the path is due
        self._full = trio.Event()
        self._life: trio.Event | None = None  # bytes came, for whoever waits for them
        self._timer = trio.CancelScope()
        self._scope = trio.CancelScope()
        self._lost: ProtocolError | None = None
        self._acked = 0  # bytes, as the kernel last said

    @property
    def peername(self) -> SocketAddress:
        """Address and port of the other end."""
        try:
            host, port = self._sock.getpeername()[:2]
        except OSError:
            return "", 0
        return host, port

    # Before a session is attached

    async def receive_frame(self) -> bytes:
        """The first frame, during the handshake. Raises LinkLost, RemoteProtocolError."""
        while True:
            frame = self._opener.next_frame()
            if frame is not None:
                return bytes(frame)
            if not self._receive():
                await trio.lowlevel.wait_readable(self._sock.fileno())

    async def send_frame(self, frame: bytes) -> None:
        """Send one frame, during the handshake. Raises LinkLost."""
        record = bytearray(len(frame) + RECORD_OVERHEAD)
        self._sealer.seal_into(frame, memoryview(record))
        view = memoryview(record)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock.fileno())
            except OSError as exc:
                raise LinkLost(f"sending failed: {exc.strerror or exc}") from exc

    # With a session

    async def run(
        self,
        session: Session,
        *,
        deliver: Callable[[Event], None],
        deliver_data: Callable[[int, list[memoryview]], None],
        wake: Callable[[], None],
        suspect: Callable[[], None],
    ) -> None:
        """Carry `session` until the link ends; always raises LinkLost or SessionLost.

        `deliver` takes each event at once, but for DataReceived: what came in a row for one stream
        goes to `deliver_data` together. `wake` is called when readers may try again, `suspect` when
        the link may be dead and another one should be looked for. The socket stays open; `close`
        it.
        """
        self._deliver, self._deliver_data = deliver, deliver_data
        self._session = session
        session.record_size = self._pace.record
        limit_unsent(self._sock, self._pace.unsent)
        self._look(session, trio.current_time())
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, session, wake)
                nursery.start_soon(self._write, session, wake)
                nursery.start_soon(self._watch, session, suspect)
                self.flush()
        raise self._lost or LinkLost("replaced")

    def probe(self) -> None:
        """Ask for a sign of life; without one the link will soon be taken for dead."""
        if self._session is not None and self._lost is None:
            self._session.probe(trio.current_time())
            self.flush()
            # Also when the socket is full and the question cannot go out.
            self._rearm()

    async def shows_life(self, seconds: float) -> bool:
        """Ask for a sign of life; whether any byte came within `seconds`."""
        self.probe()
        if self._session is None or self._lost is not None:
            return False
        if self._life is None:
            self._life = trio.Event()
        with trio.move_on_after(seconds):
            await self._life.wait()
            return self._lost is None
        return False

    async def drain(self, seconds: float) -> None:
        """Wait, no longer than that, until the other side's kernel has all that was to be sent."""
        with trio.move_on_after(seconds):
            while self._lost is None and (  # noqa: ASYNC110 - the kernel tells nobody
                self._waiting or unacked(self._sock)
            ):
                await trio.sleep(_DRAIN_POLL)

    def drop(self, reason: str) -> None:
        """End `run` with LinkLost; nothing more is received or sent from this moment on."""
        self._end(LinkLost(reason))

    def close(self) -> None:
        self._sock.close()
        self._release()

    def flush(self) -> None:
        """Seal and send what the session has, as far as the path takes it. Never waits."""
        session = self._session
        if session is None or self._lost is not None or self._waiting:
            return
        now = trio.current_time()
        if now >= self._look_at:
            self._look(session, now)
        frame = session.next_frame(now)
        if frame is not None:
            self._send_from(session, frame, now)
        if session.deadline_nearer:
            self._rearm()

    def _send_from(self, session: Session, frame: Buffer | None, now: float) -> None:
        """Send `frame`, which the session has numbered, and all that follows."""
        pace = self._pace
        area = _batches.take()
        # Where the socket may hold as much unsent as it should, the next record waits, and what
        # was queued meanwhile may overtake it. After a loss everything stays queued.
        while frame is not None and not self._waiting and self._lost is None:
            size = 0
            while frame is not None:
                size += self._sealer.seal_into(frame, area[size:])
                frame = session.next_frame(now) if size < pace.batch else None
            drained = size < pace.batch
            sent = self._send(area[:size])
            if sent < size:
                # The pool gets it back when the socket has taken it all.
                self._buffer, self._pending = area, area[sent:size]
                self._wait_for_room()
                return
            if self._is_crowded(sent):
                self._wait_for_room()
            elif not (drained or self._waiting or self._lost):
                frame = session.next_frame(now)
        _batches.give(area)

    def _is_crowded(self, sent: int) -> bool:
        """Whether, after `sent` bytes more, the socket holds as much unsent as the path allows."""
        pace = self._pace
        # What was unsent when we looked last has only become less since.
        self._unsent += sent
        if not pace.bounded:
            return False
        if self._unsent >= pace.unsent:
            self._unsent = unsent(self._sock)
        return self._unsent >= pace.unsent

    def _wait_for_room(self) -> None:
        self._waiting = True
        self._full.set()

    def _send(self, data: memoryview) -> int:
        """How much the socket took; at a loss, all: there is no use in keeping the rest."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            if self._has_unread():
                # It may be a goodbye. The reader takes it, and meets the end behind it.
                self._mute = self._waiting = True
            else:
                self._end(LinkLost(f"sending failed: {exc.strerror or exc}"))
            return len(data)

    def _receive(self) -> int:
        """Take what the socket has, 0 bytes if it has nothing now. Raises LinkLost."""
        space = self._opener.space()
        try:
            count = self._sock.recv_into(space)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise LinkLost(f"receiving failed: {exc.strerror or exc}") from exc
        if count == 0:
            raise LinkLost("closed by the other end")
        self._opener.received(count)
        # What left room was all there is; asking for more would only be told so.
        self._drained = count < len(space)
        return count

    def _end(self, why: ProtocolError) -> None:
        if self._lost is None:
            self._lost = why
            self._scope.cancel()
            self._show_life()

    def _show_life(self) -> None:
        """Wake whoever waits for bytes, or for the end."""
        if self._life is not None:
            self._life.set()
            self._life = None

    def _rearm(self) -> None:
        """Wake the timer earlier if a deadline has come nearer; a later one it finds by itself."""
        if self._session is not None:
            deadline = self._session.next_deadline()
            if deadline < self._timer.deadline:
                self._timer.deadline = deadline

    def _release(self) -> None:
        if self._buffer is not None:
            _batches.give(self._buffer)
            self._buffer = self._pending = None

    async def _read(self, session: Session, wake: Callable[[], None]) -> None:
        now = trio.current_time()
        turn_ends, quota = now + TURN_SECONDS, TURN_BYTES
        try:
            while True:
                # Also frames that came along with the last one of the handshake.
                opened = self._open_some(session, now, turn_ends)
                self.flush()
                wake()
                if self._lost is not None:
                    return
                more = not (opened and self._drained)
                if more and (quota <= 0 or trio.current_time() >= turn_ends):
                    await trio.lowlevel.checkpoint()
                    if self._lost is not None:
                        return
                    now = trio.current_time()
                    turn_ends, quota = now + TURN_SECONDS, TURN_BYTES
                if not opened:
                    continue
                count = 0 if self._drained else self._receive()
                while not count:
                    await trio.lowlevel.wait_readable(self._sock.fileno())
                    if self._lost is not None:
                        return
                    turn_ends, quota = trio.current_time() + TURN_SECONDS, TURN_BYTES
                    count = self._receive()
                quota -= count
                now = trio.current_time()
                session.heard(now)
                self._show_life()
        except (LinkLost, SessionLost) as exc:
            self._end(exc)
        except RemoteProtocolError as exc:
            # The record was sealed by the peer's own key, or the bytes were mangled on the way.
            self._end(LinkLost(f"protocol error: {exc}"))

    def _open_some(self, session: Session, now: float, turn_ends: float) -> bool:
        """Open what came, and deliver each run of data for one stream with one call.

        Whether that was all; what is left when the turn ends is for the next one.
        """
        stream, run, count = 0, list[memoryview](), 0
        try:
            while self._lost is None:
                if count == TURN_FRAMES:
                    if trio.current_time() >= turn_ends:
                        return False
                    count = 0
                frame = self._opener.next_frame()
                if frame is None:
                    break
                count += 1
                event = _receive(session, frame, now)
                if event is None:
                    continue
                if not isinstance(event, DataReceived):
                    if run:
                        self._deliver_data(stream, run)
                        run = []
                    self._deliver(event)
                    continue
                if run and event.stream != stream:
                    self._deliver_data(stream, run)
                    run = []
                stream = event.stream
                run.append(event.data)
        finally:
            # Also when a bad record follows: this data is counted as received.
            if run:
                self._deliver_data(stream, run)
        return True

    async def _write(self, session: Session, wake: Callable[[], None]) -> None:
        while True:
            await self._full.wait()
            self._full = trio.Event()
            while self._waiting:
                await trio.lowlevel.wait_writable(self._sock.fileno())
                if self._lost is not None:
                    return
                if self._pending is not None:
                    self._pending = self._pending[self._send(self._pending) :]
                    if self._pending:
                        continue
                    self._release()
                if self._mute:
                    return
                self._waiting = False
            self.flush()
            wake()

    async def _watch(self, session: Session, suspect: Callable[[], None]) -> None:
        while True:
            self._timer = trio.CancelScope(deadline=session.next_deadline())
            with self._timer:
                await trio.sleep_forever()
            if self._lost is not None:
                return
            now = trio.current_time()
            self._look(session, now)
            verdict = session.handle_deadline(now)
            if verdict is Verdict.SUSPECT:
                suspect()
            elif verdict is Verdict.DEAD:
                if not self._has_unread():
                    # A FIN would wait behind what nobody acks, and the other side for its own
                    # timers; a RST waits for nothing.
                    reset_on_close(self._sock)
                    self._end(LinkLost("no sign of life"))
                    return
                # It came in this very turn; the reader is next.
                session.heard(trio.current_time())
            self.flush()

    def _look(self, session: Session, now: float) -> None:
        """At what the kernel knows of the path: whether its acks advance, and how fast it is."""
        self._look_at = now + INTERVAL
        info = tcp_info(self._sock)
        if info is None:
            return
        session.liveness.measured(info.min_rtt)
        if info.bytes_acked > self._acked:
            # A full or very lossy path is slow to answer, but not dead.
            self._acked = info.bytes_acked
            session.liveness.progress(now - info.ack_age)
        pace = self._pace
        if pace.learn(info.rate, app_limited=info.app_limited, segment=info.segment):
            session.record_size = pace.record
            limit_unsent(self._sock, pace.unsent)

    @property
    def over(self) -> bool:
        """Whether the other side has closed or reset it, as seen before a session is attached."""
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _has_unread(self) -> bool:
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:  # nothing there, or the end, which the reader will meet
            return False


def _receive(session: Session, frame: memoryview, now: float) -> Event | None:
    try:
        return session.receive(frame, now)
    except RemoteProtocolError as exc:
        # Authenticated nonsense: replaying it over another link would meet it again.
        raise SessionLost(f"protocol error: {exc}") from exc
