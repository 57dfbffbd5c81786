"""What systemd tells a service, and hears from it: sd_notify(3), sd_listen_fds(3), its FD store.

The protocols are a datagram of lines and two environment variables; the libraries for them are not
kept up. All of this does nothing where no service manager asked for it.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import MutableMapping, Sequence
from typing import Final, TypeAlias

# What a descriptor is called in the FD store, and its number.
NamedDescriptor: TypeAlias = tuple[str, int]

# sd_listen_fds(3): SD_LISTEN_FDS_START.
_FIRST: Final = 3


def notify(*lines: str, descriptors: Sequence[int] = (), wait: float = 0.0) -> None:
    """Send `lines` such as READY=1, and with them copies of `descriptors`.

    A manager that does not listen is none of our trouble: whatever the socket answers is ignored.
    One too busy for a line will find the next; what must not be missed may `wait` so many seconds.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address.startswith("@"):  # abstract, as unix(7) has it
        address = "\0" + address[1:]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.settimeout(wait)
        sock.sendmsg(["\n".join(lines).encode()], rights if descriptors else [], 0, address)


def watchdog_seconds(environment: MutableMapping[str, str] = os.environ) -> float | None:
    """How long the manager waits for WATCHDOG=1 before it takes us for dead; None if it does not.

    See sd_watchdog_enabled(3).
    """
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() and int(text) else None


def take_descriptors(
    environment: MutableMapping[str, str] = os.environ, *, first: int = _FIRST
) -> list[NamedDescriptor]:
    """What we were started with, by name: of socket units, or out of the FD store.

    Once only: they are not for our children, nor for a second look.
    """
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    count = environment.pop("LISTEN_FDS", "")
    pid = environment.pop("LISTEN_PID", "")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    taken = []
    for number in range(int(count)):
        os.set_inheritable(first + number, False)
        taken.append((names[number] if number < len(names) else "unknown", first + number))
    return taken
