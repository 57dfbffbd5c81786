"""Whether a visitor begins as an SSH client does. The bytes are only peeked at: they stay in the
socket, and reach the router unchanged.

The first bytes of a client are its identification, `SSH-2.0-…` (RFC 4253, section 4.2; only a
server may send other lines before), and most clients send it at once. So a visitor of an SSH server
is held until it has; a visitor that sends anything else is no SSH client, and never reaches the
router. A client may also wait for the server to begin (libssh, ssh-keyscan), so silence is no
reason for a refusal:

    ======================================  =====================================
    while the visitor is held it sends      then
    ======================================  =====================================
    `SSH-`                                  passed on at once
    nothing, or a part of that              passed on when the hold is over
    anything else                           refused
    an end or a reset, without any byte     gone; the router never hears of it
    ======================================  =====================================
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
    """Return when `look` can tell more than `SILENT`."""
    with _wakes_at(sock, len(_START)):
        await trio.lowlevel.wait_readable(sock.fileno())


def look(sock: socket.socket, *, waited: bool) -> Identification:
    """What the visitor has begun with; `waited`: whether `wait_identification` has returned."""
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
    # If the wait ended with fewer bytes, the visitor has ended and sends no more.
    return (
        Identification.SILENT if _START.startswith(start) and not waited else Identification.FOREIGN
    )


@contextmanager
def _wakes_at(sock: socket.socket, count: int) -> Iterator[None]:
    """With fewer than `count` bytes, `sock` is not readable unless it has ended.

    Otherwise a visitor that sends one byte and stops would wake this task all the time, since that
    byte stays unread.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
    try:
        yield
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
