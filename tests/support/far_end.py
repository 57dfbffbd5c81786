"""The far end of every measurement, a process of its own: sink, source and echo on one port.

    python -m tests.support.far_end [ADDRESS]     says its port on stdout

Each visitor begins with a `HEAD` that says what it wants:

    SINK     the visitor sends `size` bytes; when all are here, one byte goes back
    SOURCE   `size` bytes come back, in writes of `piece` bytes
    ECHO     whatever comes goes back, until the visitor ends

One loop serves all visitors, without a thread or a task each, so that a thousand of them cost
little; and it copies nothing that it can help, since what it uses is taken from the carrier.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

from tests.support.ports import LOOPBACK
from tests.support.processes import ProcessUnderTest
from tests.support.repository import ROOT

HEAD: Final = struct.Struct(">cQI")  # what, size, piece
SINK: Final = b"s"
SOURCE: Final = b"g"
ECHO: Final = b"e"

# Fits the caches, and larger ones have measured no faster.
PIECE: Final = 1 << 18
# Of one visitor before the others have their turn.
TURNS: Final = 8


class Visitor:
    def __init__(self, sock: socket.socket, buffer: memoryview, ask: Callable[[int], None]) -> None:
        self._sock = sock
        self._buffer = buffer  # everybody's: nothing is left in it between two turns
        self._ask = ask
        self._head = b""
        self._left = 0
        self._rest = memoryview(b"")  # of the piece under way
        self._piece = self._rest
        self.serve = self._greet

    def close(self) -> None:
        self._sock.close()

    def _greet(self) -> bool:
        """Like all of them, False when the visitor is done with."""
        data = self._sock.recv(HEAD.size - len(self._head))
        self._head += data
        if len(self._head) < HEAD.size:
            return bool(data)
        what, self._left, piece = HEAD.unpack(self._head)
        if what == SINK:
            self.serve = self._sink
        elif what == SOURCE:
            self._piece = memoryview(bytes(piece))
            self.serve = self._source
            self._ask(select.EPOLLOUT)
        elif what == ECHO:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.serve = self._echo
        return what in (SINK, SOURCE, ECHO)

    def _sink(self) -> bool:
        for _ in range(TURNS):
            count = self._sock.recv_into(self._buffer)
            self._left -= count
            if self._left <= 0:
                self._sock.send(b"!")
            if count == 0 or self._left <= 0:
                return False
        return True

    def _source(self) -> bool:
        for _ in range(TURNS * max(1, PIECE // len(self._piece))):
            if not self._rest:
                if not self._left:
                    return False
                self._rest = self._piece[: self._left]
            count = self._sock.send(self._rest)
            self._rest = self._rest[count:]
            self._left -= count
        return True

    def _echo(self) -> bool:
        if self._rest:
            data = self._rest
        elif count := self._sock.recv_into(self._buffer):
            data = self._buffer[:count]
        else:
            return False
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data) or self._rest:
            # What a visitor does not read back stops being read from it.
            self._rest = memoryview(bytes(data[sent:]))
            self._ask(select.EPOLLOUT if self._rest else select.EPOLLIN)
        return True


class FarEnd(ProcessUnderTest):
    """Sink, source and echo on `port`, started."""

    def __init__(self, address: str = LOOPBACK) -> None:
        # Without the user's variables and packages, and what looking for these takes.
        argv = [sys.executable, "-ESs", "-m", __name__, address]
        super().__init__(argv, environment=os.environ, cwd=ROOT)
        self.port = int(self.wait_for_output(r"^\d+$").group())


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else LOOPBACK
    listener = socket.create_server((address, 0), backlog=4096)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    visitors: dict[int, Visitor] = {}
    buffer = memoryview(bytearray(PIECE))
    gc.disable()  # nothing here is a cycle
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    while True:
        for number, _ in epoll.poll():
            visitor = visitors.get(number)
            if visitor is None:
                _welcome(listener, epoll, visitors, buffer)
                continue
            try:
                stays = visitor.serve()
            except BlockingIOError:
                stays = True
            except OSError:  # reset
                stays = False
            if not stays:
                del visitors[number]
                visitor.close()


def _welcome(
    listener: socket.socket,
    epoll: select.epoll,
    visitors: dict[int, Visitor],
    buffer: memoryview,
) -> None:
    try:
        sock, _ = listener.accept()
    except OSError:  # gone before it was taken
        return
    sock.setblocking(False)
    number = sock.fileno()
    epoll.register(number, select.EPOLLIN)
    visitors[number] = Visitor(sock, buffer, lambda events: epoll.modify(number, events))


if __name__ == "__main__":
    main()
