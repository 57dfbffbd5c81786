"""Socket options, each with its reason. All sockets here are plain, non-blocking stdlib sockets.

`trio.socket` checkpoints on every call; the data path tries the call first and waits with
`trio.lowlevel` only on EAGAIN, which takes a third off a round trip.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Final

import trio

# {on, 0 s}: close() sends RST and drops what is unsent.
_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_LINGER_OFF: Final = struct.pack("ii", 0, 0)

# Backstop only, above every rule in protocol.session.liveness: ends a link whose process does not
# run.
LINK_USER_TIMEOUT_MS: Final = 45_000
# Longer than any silence that a PING leaves, so that it adds no traffic to an idle link.
_KEEPALIVE_IDLE: Final = 30
_KEEPALIVE_INTERVAL: Final = 5
_KEEPALIVE_COUNT: Final = 3


def plain(sock: trio.socket.SocketType) -> socket.socket:
    """Take the stdlib socket out of a trio one; the trio object is dead afterwards."""
    family, kind, proto = sock.family, sock.type, sock.proto
    taken = socket.socket(family, kind, proto, fileno=sock.detach())
    taken.setblocking(False)
    return taken


def prepare_link(sock: socket.socket) -> None:
    sock.setblocking(False)
    # Keystrokes travel alone; Nagle would hold each for an RTT.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_USER_TIMEOUT", LINK_USER_TIMEOUT_MS),
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", _KEEPALIVE_COUNT),
    ):
        # Named differently or absent off Linux, where the session's own timers must do.
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def limit_unsent(sock: socket.socket, count: int) -> None:
    """Report `sock` writable only when it holds less than `count` bytes never sent, or half of it.

    `send` itself is not bound by it. Nothing happens where the system has no such limit.
    """
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        with contextlib.suppress(OSError):  # the socket is gone, as its users will find
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, count)


def prepare_spliced(sock: socket.socket) -> None:
    """For a visitor's or target's socket, right after accept or before connect.

    From here on, however this process ends, the other side sees a reset and not an end of file: a
    kernel that closes the sockets of a killed process would otherwise send FIN, and a truncated
    copy would look complete.
    """
    sock.setblocking(False)
    reset_on_close(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The SSH server's own keepalive ends at our socket, so a visitor that vanished is ours to
    # notice; after the system's two hours, as it would be without us.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def reset_on_close(sock: socket.socket) -> None:
    """From here on, whoever closes `sock`, and be it the kernel, sends RST and drops the rest."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


def close_finished(sock: socket.socket) -> None:
    """Close a spliced socket whose both directions are finished."""
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)


async def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Raises EOFError if the peer closes before, OSError if it resets."""
    data = bytearray(count)
    view = memoryview(data)
    have = 0
    while have < count:
        try:
            received = sock.recv_into(view[have:])
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock.fileno())
            continue
        if received == 0:
            raise EOFError
        have += received
    return bytes(data)


async def send_all(sock: socket.socket, data: bytes) -> None:
    """Raises OSError if the peer is gone."""
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock.fileno())
