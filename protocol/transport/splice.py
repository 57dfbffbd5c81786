"""One stream joined to one TCP socket: a visitor's at the relay, a target's at the agent.

    outbound   socket ──read as far as the session allows──▶ session.send ──EOF──▶ session.finish
    inbound    events ──write at once, keep the rest──▶ socket ──FIN──▶ shutdown(SHUT_WR)

How it ends (the socket carries SO_LINGER {1, 0} throughout, so every close but the first is a RST):

=============================================  ================================================
both directions finished                       close
peer resets, its direction not finished        close at once: RST
peer resets after its FIN                      deliver all, shut down, then discard what the
                                               socket still sends until it ends: a RST now could
                                               destroy what lies unread at the other side
our socket is reset                            stream reset
our socket takes no more (EPIPE) but is still  discard inbound; finish outbound at EOF, then reset
being read: its FIN is behind unread data
=============================================  ================================================

The last row is `ssh host 'cat big; exit 3'` with a slow reader: sshd has closed, the laptop has not
read it all yet and still sends window updates.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Callable
from typing import Final

import trio

from protocol.errors import ResetCode
from protocol.session.send_admission import BURST_FRAMES
from protocol.session.session import Session
from protocol.transport.link import TURN_BYTES
from protocol.transport.sockets import close_finished
from protocol.transport.status import StreamAbout
from protocol.wire.body import Fields
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import HEADER_SIZE, MAX_PAYLOAD, MAX_WINDOW
from protocol.wire.hello import U64_MAX
from protocol.wire.record import lazy_area

# How long a socket may go on sending to a stream that was reset after all was delivered to it: the
# kernel's own limit for an orphan in FIN-WAIT-2 (tcp_fin_timeout).
DISCARD_SECONDS: Final = 60.0
# Linux takes no more pieces in one call (IOV_MAX, limits.h). After an outage a thousand keystrokes
# arrive in one go.
_MOST_PIECES: Final = 1024
# What nobody will read goes here, for all splices: most of those who discard only wait.
_scrap: Final = lazy_area(64 * 1024)


class Splice:
    def __init__(
        self,
        session: Session,
        stream: int,
        *,
        pool: BufferPool,
        flush: Callable[[], None],
        over: Callable[[Splice], None],
        about: StreamAbout,
    ) -> None:
        """`flush` sends what the session has, `over` hears that nothing more is to be done.

        `about` is for whoever asks what goes on here: the service, and where the visitor is.
        """
        self._session = session
        self._pool = pool
        self._flush = flush
        self._over = over
        self.stream = stream
        self.about = about
        self.began = trio.current_time()
        self.sent = 0  # bytes from the socket to the stream
        self.delivered = 0  # bytes from the stream to the socket
        # Told the size of each piece for the socket, as the peer read it.
        self.overhear: Callable[[int], None] | None = None
        self.deaf = False  # the socket takes no more; what comes for it is discarded
        self._sock: socket.socket | None = None
        self._backlog = bytearray()  # inbound bytes the socket has not taken yet
        self._fin = False  # the peer's direction ended
        self._eof = False  # the socket's direction ended
        self._reset: int | None = None  # the code of the peer's reset
        self._ready = trio.Event()  # the session may take more
        self._writable = trio.Event()  # there is a backlog
        self._inbound_over = trio.Event()
        # For whoever gets the socket: cancelled when it is not wanted any more.
        self.dialling = trio.CancelScope()
        self._scope = trio.CancelScope()
        self._reading = trio.CancelScope()

    async def run(self, sock: socket.socket) -> None:
        """Carry bytes until both directions are over. Owns `sock` and closes it."""
        self._sock = sock
        finished = False
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    self._pump_and_tell()
                    finished = await self._read(sock)
                    await self._inbound_over.wait()
                    if self._reset is not None:
                        finished = await self._discard(sock)
                    nursery.cancel_scope.cancel()
            finished = finished and not self.deaf and not self._scope.cancel_called
        finally:
            if not finished:
                self._session.reset(self.stream, ResetCode.ABORTED)
            self._over(self)
            if finished:
                close_finished(sock)
            else:
                sock.close()

    @property
    def reset_by_peer(self) -> str | None:
        """Why the peer, or the loss of the session, reset the stream; None if neither did."""
        if self._reset is None:
            return None
        known = self._reset in ResetCode.__members__.values()
        return ResetCode(self._reset).name.lower().replace("_", " ") if known else "unknown reason"

    @property
    def inbound_finished(self) -> bool:
        """Whether the peer's FIN came: what it sent is complete, delivered or not."""
        return self._fin

    # For the process that goes on with it, in whose hands the socket is then

    def export(self) -> dict[str, object] | None:
        """What `restore` takes; None if it is about to end. No task may run after this."""
        if self._scope.cancel_called or self._sock is None or self._sock.fileno() < 0:
            return None
        saved: dict[str, object] = {
            "age": max(0.0, trio.current_time() - self.began),
            "sent": self.sent,
            "delivered": self.delivered,
            "deaf": self.deaf,
            "backlog": self._backlog,
            "fin": self._fin,
            "eof": self._eof,
            "inbound_over": self._inbound_over.is_set(),
        }
        return saved if self._reset is None else saved | {"reset": self._reset}

    def restore(self, saved: Fields) -> None:
        """Go on as the one that was exported, once it is run. Raises RemoteProtocolError."""
        self.began = trio.current_time() - saved.number("age", 0.0, math.inf)
        self.sent = saved.integer("sent", 0, U64_MAX)
        self.delivered = saved.integer("delivered", 0, U64_MAX)
        self.deaf = saved.boolean("deaf")
        self._backlog += saved.octets("backlog", 0, MAX_WINDOW)
        self._fin = saved.boolean("fin")
        self._eof = saved.boolean("eof")
        self._reset = saved.integer("reset", 0, 255) if "reset" in saved else None
        if saved.boolean("inbound_over"):
            self._inbound_over.set()
        saved.finish()
        if self._eof or self._reset is not None:
            self._reading.cancel()

    # Called by the endpoint; none waits

    def on_data(self, data: list[memoryview]) -> None:
        """Take what came, in order: to the socket at once, and what does not fit is kept."""
        taken = 0
        if self.overhear is not None:
            for piece in data:
                self.overhear(len(piece))
        if self.deaf:
            self._session.consumed(self.stream, sum(map(len, data)), kept_up=False)
            return
        if self._sock is not None and not self._backlog:
            taken = self._send(self._sock, data)
            if self.deaf or taken == sum(map(len, data)):
                return
            self._writable.set()
        for piece in data:
            self._backlog += piece[taken:]
            taken = max(0, taken - len(piece))

    def on_fin(self) -> None:
        self._fin = True
        self._pump()

    def on_reset(self, code: int, *, finished: bool) -> None:
        self._reset = code
        if finished:
            self._reading.cancel()
            self._pump()
        else:
            # Its credit is back at the peer already, so its memory must be free as well.
            self._backlog.clear()
            self.dialling.cancel()
            self._scope.cancel()

    def on_ready(self) -> None:
        self._ready.set()

    # Inbound

    def _pump(self) -> None:
        """Write what waits, then pass the FIN on."""
        if self._sock is None:
            return
        if self._backlog:
            with memoryview(self._backlog) as view:
                sent = self._send(self._sock, [view])
            del self._backlog[:sent]
        if self._backlog:
            self._writable.set()
        elif self._fin and not self._inbound_over.is_set():
            self._deliver_fin(self._sock)

    def _pump_and_tell(self) -> None:
        """From a task of our own: nobody else would send the peer the credit that this made."""
        self._pump()
        self._flush()

    def _send(self, sock: socket.socket, data: list[memoryview]) -> int:
        """How many bytes of `data` are dealt with."""
        count = sum(map(len, data))
        try:
            sent = sock.send(data[0]) if len(data) == 1 else sock.sendmsg(data[:_MOST_PIECES])
        except BlockingIOError:
            return 0
        except OSError as exc:
            return self._send_failed(exc, count)
        self.delivered += sent
        self._session.consumed(self.stream, sent, kept_up=sent == count)
        return sent

    def _send_failed(self, exc: OSError, count: int) -> int:
        if exc.errno != errno.EPIPE:
            self._scope.cancel()
            return 0
        # Linux reports EPIPE, not ECONNRESET, only where the other side's FIN came first: all it
        # wrote can still be read, and its end of file is a true one.
        self.deaf = True
        self._session.consumed(self.stream, count, kept_up=False)
        if self._eof:
            self._reset_after_fin()
        return count

    def _deliver_fin(self, sock: socket.socket) -> None:
        try:
            if not self.deaf:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            # Not connected any more: the reader meets the reset, if there is one.
            self.deaf = True
        self._session.fin_delivered(self.stream)
        self._inbound_over.set()

    async def _write(self) -> None:
        """Wait for room in the socket whenever it was full."""
        while True:
            await self._writable.wait()
            self._writable = trio.Event()
            while self._backlog and self._sock is not None:
                await trio.lowlevel.wait_writable(self._sock.fileno())
                self._pump_and_tell()

    # Outbound

    async def _read(self, sock: socket.socket) -> bool:
        """Feed the stream until the socket's end; True if it ended with a FIN."""
        with self._reading:
            await self._read_to_end(sock)
        return self._eof

    async def _read_to_end(self, sock: socket.socket) -> None:
        quota = TURN_BYTES
        frames = 1
        while True:
            # A task woken in the turn in which it is cancelled runs once more, and an error that
            # the other direction has met reads as an end of file from then on.
            await trio.lowlevel.checkpoint_if_cancelled()
            allowance = self._session.allowance(self.stream, frames)
            if not allowance:
                self._ready = trio.Event()
                await self._ready.wait()
                quota = TURN_BYTES
                continue
            count = self._receive(sock, allowance)
            if count is None:
                frames = 1
                await trio.lowlevel.wait_readable(sock.fileno())
                quota = TURN_BYTES
                continue
            if count == 0:
                self._finish_outbound()
                return
            self._flush()
            quota -= count
            if count < allowance:
                # That was all; asking for more would only be told so.
                frames = 1
                await trio.lowlevel.wait_readable(sock.fileno())
                quota = TURN_BYTES
                continue
            # There is more, and a system call for each record would cost as much as sealing it.
            frames = BURST_FRAMES
            if quota <= 0:
                quota = TURN_BYTES
                await trio.lowlevel.checkpoint()

    def _receive(self, sock: socket.socket, allowance: int) -> int | None:
        """Read and queue; 0 at the end of file, None if nothing is there."""
        pool = self._pool
        buffers = [pool.take() for _ in range(-(-allowance // MAX_PAYLOAD))]
        try:
            if len(buffers) == 1:
                area = memoryview(buffers[0])[HEADER_SIZE : HEADER_SIZE + allowance]
                count = sock.recv_into(area)
            else:
                areas = [memoryview(buffer)[HEADER_SIZE:] for buffer in buffers]
                areas[-1] = areas[-1][: allowance - MAX_PAYLOAD * (len(buffers) - 1)]
                count = sock.recvmsg_into(areas)[0]
            if count:
                buffers = self._session.send(self.stream, buffers, count)
                self.sent += count
        except BlockingIOError:
            return None
        except OSError:
            self._scope.cancel()
            return None
        else:
            return count
        finally:
            for buffer in buffers:
                pool.give(buffer)

    def _finish_outbound(self) -> None:
        self._eof = True
        self._session.finish(self.stream)
        if self.deaf:
            self._reset_after_fin()
        self._flush()

    def _reset_after_fin(self) -> None:
        """Tell the peer that nobody listens; the session sends it behind our FIN."""
        self._session.reset(self.stream, ResetCode.ABORTED)
        self._inbound_over.set()

    async def _discard(self, sock: socket.socket) -> bool:
        """Read and drop what the socket sends to nobody; True when it ends by itself."""
        try:
            with trio.move_on_after(DISCARD_SECONDS):
                while True:
                    try:
                        if sock.recv_into(_scrap) == 0:
                            return True
                    except BlockingIOError:
                        await trio.lowlevel.wait_readable(sock.fileno())
                    await trio.lowlevel.checkpoint()
        except OSError:
            pass
        return False
