"""The kernel's bounds on TCP buffers: what a long fat link needs beyond our own windows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from protocol.process.logs import event

log = logging.getLogger(__name__)

# Three numbers each: least, at first, and the most that autotuning may reach (tcp(7)), in bytes.
_BUFFERS: Final = ("tcp_rmem", "tcp_wmem")


def tell_small_buffers(wanted: int, folder: Path = Path("/proc/sys/net/ipv4")) -> None:
    """Log each sysctl that keeps a link from having `wanted` bytes under way.

    200 Mbit/s over 150 ms have 4 MB under way, and the kernel counts its own overhead in.
    """
    for name in _BUFFERS:
        try:
            most = int((folder / name).read_text().split()[2])
        except (OSError, ValueError, IndexError):
            continue  # not Linux, or a container that hides it
        if most < wanted:
            event(
                log,
                logging.INFO,
                "tcp-buffers-small",
                sysctl=f"net.ipv4.{name}",
                most=most,
                wanted=wanted,
                reason="one stream cannot fill a fast and distant link",
            )
