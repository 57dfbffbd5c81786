"""Non-blocking TCP sockets on loopback, for tests that run in trio."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

import trio

from tests.support.ports import LOOPBACK


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets: the caller's and the accepted."""
    with socket.create_server((LOOPBACK, 0)) as server:
        caller = caller_of(server.getsockname()[1])
        accepted, _ = server.accept()
    accepted.setblocking(False)
    return caller, accepted


def caller_of(port: int) -> socket.socket:
    sock = socket.create_connection((LOOPBACK, port))
    sock.setblocking(False)
    return sock


def refuses(port: int) -> bool:
    try:
        caller_of(port).close()
    except ConnectionRefusedError:
        return True
    return False


async def receive_to_end(sock: socket.socket) -> bytes:
    """All up to the end of file; OSError on a reset."""
    data = bytearray()
    while True:
        await trio.lowlevel.wait_readable(sock)
        piece = sock.recv(65536)
        if not piece:
            return bytes(data)
        data += piece


async def was_reset(sock: socket.socket) -> bool:
    """Wait for the end of `sock`, close it, and tell whether it ended by a reset."""
    with sock:
        try:
            await receive_to_end(sock)
        except ConnectionResetError:
            return True
    return False


def unacked(sock: socket.socket) -> int:
    """Bytes, or a FIN, that the other side's kernel does not have yet (tcp(7), SIOCOUTQ)."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return int(count)
