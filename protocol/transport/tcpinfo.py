"""What the kernel knows of a TCP connection: TCP_INFO, `struct tcp_info` of linux/tcp.h."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import termios
from dataclasses import dataclass
from typing import Final

# The struct only grows at its end: up to tcpi_bytes_acked (Linux 4.1), and to tcpi_delivery_rate
# (Linux 4.9).
_LAYOUT: Final = struct.Struct("=7xB8xI36xI60xQ")
_LAYOUT_WITH_RATE: Final = struct.Struct("=7xB8xI36xI60xQ20xI8xQ")
# What the kernel says before it has measured one (tcp_min_rtt, ~0).
_NO_RTT: Final = 0xFFFFFFFF
# The first of the eighth byte's bit fields.
_APP_LIMITED: Final = 0x01

# linux/sockios.h: bytes in the send queue that were not sent even once.
_SIOCOUTQNSD: Final = 0x894B
_answer: Final = array.array("i", [0])


@dataclass(frozen=True, slots=True)
class TcpInfo:
    bytes_acked: int  # by the other side's kernel, since the start
    ack_age: float  # seconds since the last segment with an ACK came
    segment: int  # bytes of payload in a full segment that we send
    min_rtt: float  # seconds, of the last minutes; 0 where that is not known
    rate: int  # bytes a second at which the path took the last window; 0 where that is not known
    app_limited: bool  # the rate was limited by what there was to send


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """None where the kernel has no such thing, or the socket is gone."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return None
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, option, _LAYOUT_WITH_RATE.size)
    except OSError:
        return None
    if len(raw) < _LAYOUT.size:
        return None
    min_rtt, rate = _NO_RTT, 0
    if len(raw) >= _LAYOUT_WITH_RATE.size:
        flags, segment, milliseconds, bytes_acked, min_rtt, rate = _LAYOUT_WITH_RATE.unpack(raw)
    else:
        flags, segment, milliseconds, bytes_acked = _LAYOUT.unpack_from(raw)
    return TcpInfo(
        bytes_acked=bytes_acked,
        ack_age=milliseconds / 1000,
        segment=segment,
        min_rtt=0.0 if min_rtt == _NO_RTT else min_rtt / 1_000_000,
        rate=rate,
        app_limited=bool(flags & _APP_LIMITED),
    )


def unsent(sock: socket.socket) -> int:
    """Bytes that the socket took and the kernel has not sent once; 0 if it does not say."""
    return _queue(sock, _SIOCOUTQNSD)


def unacked(sock: socket.socket) -> int:
    """Bytes that the socket took and the other side's kernel does not have yet, likewise."""
    return _queue(sock, termios.TIOCOUTQ)


def _queue(sock: socket.socket, request: int) -> int:
    try:
        fcntl.ioctl(sock.fileno(), request, _answer)
    except (OSError, ValueError):  # not Linux, or the socket is closed
        return 0
    return _answer[0]
