"""What the system allows this process, where that is less than it may need."""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
from pathlib import Path
from typing import Final, TypedDict

from protocol.process.logs import event

log = logging.getLogger(__name__)

# Three numbers each: least, at first, and the most that autotuning may reach (tcp(7)), in bytes.
_BUFFERS: Final = ("tcp_rmem", "tcp_wmem")


def tell_small_buffers(wanted: int, folder: Path = Path("/proc/sys/net/ipv4")) -> None:
    """Log each of `small_buffers`."""
    for name, most in small_buffers(wanted, folder).items():
        event(
            log,
            logging.INFO,
            "tcp-buffers-small",
            sysctl=name,
            most=most,
            wanted=wanted,
            reason="one stream cannot fill a fast and distant link",
        )


def small_buffers(wanted: int, folder: Path = Path("/proc/sys/net/ipv4")) -> dict[str, int]:
    """Each sysctl that keeps a link from having `wanted` bytes under way, with what it allows.

    200 Mbit/s over 150 ms have 4 MB under way, and the kernel counts its own overhead in.
    """
    small = {}
    for name in _BUFFERS:
        try:
            most = int((folder / name).read_text().split()[2])
        except (OSError, ValueError, IndexError):
            continue  # not Linux, or a container that hides it
        if most < wanted:
            small[f"net.ipv4.{name}"] = most
    return small


def raise_descriptor_limit() -> None:
    """To what the system allows without asking anybody.

    The soft limit is 1,024 almost everywhere, for the sake of select(2), which nobody uses here; a
    relay is full with that at 340 agents.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptor_limit(*, hard: bool = False) -> int:
    """How many descriptors this process may have; `hard`: how many it may ask for."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[hard]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


class Descriptors(TypedDict):
    descriptors: int  # that this process has
    descriptor_limit: int  # that it may have


def descriptors() -> Descriptors:
    listed = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return {
        "descriptors": listed - 1,  # one is that of the listing
        "descriptor_limit": descriptor_limit(),
    }
