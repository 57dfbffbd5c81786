"""Listening sockets that outlive this process, in systemd's FD store.

From a crash or a restart until the next process is there, callers wait in the kernel's queue
instead of being refused. Without a store (FileDescriptorStoreMax=0, or no systemd) sockets are
opened and closed as ever.

    opened   a copy is stored under the name of its address
    closed   and forgotten: the port must be free, not open with nobody behind it
    started  taken by whoever wants that address; what nobody wants is closed after a while
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

from protocol.process.systemd import NamedDescriptor, notify
from relay_server.net.accept_loop import BACKLOG, listen, stop_accepting

# FileDescriptorName of the socket unit: where agents dial in, instead of what `listen` says.
LINK: Final = "relay-link"
# An agent is back within 8 s of backoff and a dial of 10 s, and publishes at once. Whoever comes
# later has its ports opened anew.
UNCLAIMED_SECONDS: Final = 30.0


class StoredListeners:
    def __init__(self, started_with: Iterable[tuple[str, socket.socket]] = ()) -> None:
        """`started_with` are the sockets, by name, that this process was started with."""
        self.links: list[socket.socket] = []
        self._open: dict[str, socket.socket] = {}
        self._unclaimed: dict[str, socket.socket] = {}
        self._leaving = False
        for name, sock in started_with:
            if name == LINK:
                sock.listen(BACKLOG)
                self.links.append(sock)
            elif name.startswith(_PREFIX):
                self._unclaimed[name] = sock
            else:  # from a unit that an operator has changed; it is not one of ours
                sock.close()

    def listen(self, host: str, port: int, *, dual_stack: bool) -> socket.socket:
        """As `accept.listen`; the one that was stored, if there is one for that address."""
        sock = self._unclaimed.pop(_name(host, port), None)
        if sock is None:
            sock = listen(host, port, dual_stack=dual_stack)
            # FDPOLL=0: a listening socket has no end that the manager should look for.
            name = f"FDNAME={_name_of(sock)}"
            notify("FDSTORE=1", "FDPOLL=0", name, descriptors=[sock.fileno()])
        self._open[_name_of(sock)] = sock
        return sock

    def close(self, sock: socket.socket) -> None:
        """Close one that `listen` gave, here and in the store."""
        if sock.fileno() < 0:
            return
        self._open.pop(_name_of(sock), None)
        if not self._leaving:
            notify("FDSTOREREMOVE=1", f"FDNAME={_name_of(sock)}")
        stop_accepting(sock)

    def leave(self) -> None:
        """The process ends: what is closed from here on stays in the store, for the next one."""
        self._leaving = True

    def left(self) -> list[NamedDescriptor]:
        """All that are open, by name, for a process that does not get them out of the store."""
        named = [*self._open.items(), *self._unclaimed.items()]
        named += [(LINK, sock) for sock in self.links]
        return [(name, sock.fileno()) for name, sock in named if sock.fileno() >= 0]

    def close_unclaimed(self) -> list[str]:
        """Close what nobody asked for; returns the addresses."""
        closed = []
        for sock in self._unclaimed.values():
            host, port = sock.getsockname()[:2]
            closed.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            self.close(sock)
        self._unclaimed.clear()
        return closed


_PREFIX: Final = "listen-"


def _name_of(sock: socket.socket) -> str:
    return _name(*sock.getsockname()[:2])


def _name(host: str, port: int) -> str:
    # sd_pid_notify_with_fds(3) wants no colon in a name.
    return f"{_PREFIX}{port}-{host.replace(':', '_')}"
