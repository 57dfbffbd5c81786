"""Whether a visitor begins as an SSH client does. Nothing is taken from its socket: what it said
reaches the router as it came.

A client's first bytes are its identification, `SSH-2.0-…` (RFC 4253, section 4.2; only a server may
send other lines before), and most send it at once. So a visitor to an SSH server is held until it
has; one that says anything else is no SSH client, and never reaches the router. A client may also
wait for the server to begin (libssh, ssh-keyscan), so silence is no reason to refuse anybody:

    ====================================  ==========================================
    within the hold                       then
    ====================================  ==========================================
    `SSH-`                                passed on at once
    nothing, or less than that            passed on when the hold is over
    anything else                         refused
    an end or a reset, without any byte   gone; nobody hears of it at the router
    ====================================  ==========================================
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

_START: Final = b"SSH-"


class Identification(enum.Enum):
    SSH = enum.auto()
    SILENT = enum.auto()  # so far
    FOREIGN = enum.auto()
    GONE = enum.auto()


async def wait_identification(sock: socket.socket) -> None:
    """Until `look` tells more than `SILENT`."""
    with _wakes_at(sock, len(_START)):
        await trio.lowlevel.wait_readable(sock.fileno())


def look(sock: socket.socket, *, waited: bool) -> Identification:
    """What the visitor began with; `waited`: `wait_identification` has returned."""
    try:
        start = sock.recv(len(_START), socket.MSG_PEEK)
    except BlockingIOError:
        return Identification.SILENT
    except OSError:
        return Identification.GONE
    if start == _START:
        return Identification.SSH
    if not start:
        return Identification.GONE
    # Awake with less means that there will be no more of it.
    return (
        Identification.SILENT if _START.startswith(start) and not waited else Identification.FOREIGN
    )


@contextmanager
def _wakes_at(sock: socket.socket, count: int) -> Iterator[None]:
    """`sock` is not readable with less than `count` bytes, unless it has ended.

    Else whoever sends a byte and stops would wake us all the time, as that byte stays unread.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
    try:
        yield
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
