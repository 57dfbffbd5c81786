"""Who has a port of this machine, asked without listening."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from protocol.process.address import HostPort


def bind_error(address: HostPort, *, dual_stack: bool = False) -> int | None:
    """Why the relay cannot have the port; None if it can. Who comes meanwhile finds nobody."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
            sock.bind((address.host, address.port))
    except OSError as exc:
        return exc.errno
    return None


def who_holds(addresses: Sequence[HostPort]) -> str:
    ports = sorted({address.port for address in addresses})
    shown = " or ".join(f"sport = :{port}" for port in ports[:3])
    return f"see who it is: sudo ss -ltnp '{shown}'; stop it, or choose another port"


def lowest_free() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return 1024
