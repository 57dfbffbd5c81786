"""What the kernel knows of a TCP connection: TCP_INFO, `struct tcp_info` of linux/tcp.h."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

# Up to and with tcpi_bytes_acked (Linux 4.1); what came later is longer, what was before shorter.
_LAYOUT: Final = struct.Struct("=56xI60xQ")


@dataclass(frozen=True, slots=True)
class TcpInfo:
    bytes_acked: int  # by the other side's kernel, since the start
    ack_age: float  # seconds since the last segment with an ACK came


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """None where the kernel has no such thing, or the socket is gone."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return None
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, option, _LAYOUT.size)
    except OSError:
        return None
    if len(raw) < _LAYOUT.size:
        return None
    milliseconds, bytes_acked = _LAYOUT.unpack(raw)
    return TcpInfo(bytes_acked=bytes_acked, ack_age=milliseconds / 1000)
