"""Blocking sockets of a test's own: the visitor at a public port, and the target behind it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

from tests.support.ports import LOOPBACK
from tests.support.waiting import LIMIT

# Enough to fill every buffer on the way, and for the receiver to notice one byte amiss.
PATTERN = b"".join(struct.pack(">I", number) for number in range(1 << 18))


class Target:
    """A listening socket that a service points to; the test plays the server itself."""

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0), backlog=64)
        self._listener.settimeout(LIMIT)
        self.port: int = self._listener.getsockname()[1]

    def accept(self) -> socket.socket:
        accepted, _ = self._listener.accept()
        accepted.settimeout(LIMIT)
        return accepted

    def close(self) -> None:
        self._listener.close()


def visit(port: int, host: str = LOOPBACK, *, source: str | None = None) -> socket.socket:
    """Come to a public port like anybody's TCP client, from the address `source`."""
    bind = None if source is None else (source, 0)
    return socket.create_connection((host, port), timeout=LIMIT, source_address=bind)


@contextlib.contextmanager
def pair(port: int, target: Target) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A visitor and the socket at the target that belongs to it, proved by a first exchange."""
    with visit(port) as visitor:
        visitor.sendall(b"hello?")
        with target.accept() as accepted:
            assert receive(accepted, 6) == b"hello?"
            accepted.sendall(b"hello!")
            assert receive(visitor, 6) == b"hello!"
            yield visitor, accepted


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(size - len(data), 1 << 16))
        assert piece, f"ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


@contextlib.contextmanager
def sending(sock: socket.socket, data: bytes) -> Iterator[None]:
    """Send `data` and the end of that direction, while the body of the `with` goes on."""

    def send() -> None:
        # When the reader gives up, its own complaint is the one worth reading.
        with contextlib.suppress(OSError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    yield
    sender.join(LIMIT)
    assert not sender.is_alive(), "still sending"


def receive_to_end(sock: socket.socket) -> bytes:
    """All bytes up to a clean end; a reset raises ConnectionResetError."""
    data = bytearray()
    while piece := sock.recv(1 << 16):
        data += piece
    return bytes(data)


def was_reset(sock: socket.socket) -> bool:
    """Read on until the end, and tell whether it was a reset."""
    try:
        receive_to_end(sock)
    except ConnectionResetError:
        return True
    return False


def reset(sock: socket.socket) -> None:
    """Close with a RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
