"""The little of a service manager that a service talks to: its notify socket, its FD store."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

MESSAGE: Final = 4096
DESCRIPTORS: Final = 253  # a message takes no more (SCM_MAX_FD)

# Between fork and exec, as systemd does it: sd_listen_fds(3). Moved up first, since a descriptor
# may be in the place of another.
_LAUNCH: Final = """
import fcntl, os, sys
names, descriptors, *argv = sys.argv[1:]
given = list(map(int, descriptors.split()))
high = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 500) for number in given]
for number in given:
    os.close(number)
for place, number in enumerate(high, 3):
    os.dup2(number, place, inheritable=True)
listen = {"LISTEN_PID": os.getpid(), "LISTEN_FDS": len(high), "LISTEN_FDNAMES": names}
os.execve(argv[0], argv, os.environ | {name: str(value) for name, value in listen.items()})
"""


class Manager:
    """Listens at `address`, a path or, after an @, an abstract name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.store: list[tuple[str, int]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self._sock.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()
        for _, descriptor in self.store:
            os.close(descriptor)
        self.store.clear()

    def take(self) -> list[tuple[list[str], list[int]]]:
        """All messages that came: their lines and descriptors, which are the caller's."""
        messages: list[tuple[list[str], list[int]]] = []
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._sock, MESSAGE, DESCRIPTORS)
            except BlockingIOError:
                return messages
            messages.append((data.decode().split("\n"), list(descriptors)))

    def obey(self) -> list[str]:
        """Do what came for the store, as sd_pid_notify_with_fds(3) has it; returns all lines."""
        said = []
        for lines, descriptors in self.take():
            said += lines
            name = next((line[7:] for line in lines if line.startswith("FDNAME=")), "stored")
            if "FDSTORE=1" in lines:
                self.store += [(name, descriptor) for descriptor in descriptors]
            elif "BARRIER=1" in lines:
                os.close(descriptors[0])
            if "FDSTOREREMOVE=1" in lines:
                for entry in [one for one in self.store if one[0] == name]:
                    os.close(entry[1])
                    self.store.remove(entry)
        return said

    def launch(self, argv: Sequence[str | Path]) -> list[str]:
        """What starts `argv` with what the store has, whose descriptors it must inherit."""
        self.obey()
        names = ":".join(name for name, _ in self.store)
        descriptors = " ".join(str(descriptor) for _, descriptor in self.store)
        return [sys.executable, "-c", _LAUNCH, names, descriptors, *map(str, argv)]

    def names(self) -> list[str]:
        self.obey()
        return sorted(name for name, _ in self.store)
