"""The listening sockets of one public port.

A listener belongs to an agent's key and a port, not to a link or a session. So a reconnecting agent
never meets a stale listener: it finds its own, still open, perhaps with visitors waiting for it.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from protocol.errors import RefusalCode
from protocol.process.logs import event
from protocol.wire.identifiers import SocketAddress
from relay_server.net.accept_loop import accept_forever
from relay_server.net.fd_store import StoredListeners
from relay_server.net.networks import Admission

log = logging.getLogger(__name__)

# A port that another program holds is tried again this often: a person who frees it is waiting.
RETRY: Final = 2.0

OnVisitor = Callable[[socket.socket, SocketAddress], None]


class PortUnavailable(Exception):  # noqa: N818 - an answer, not an error
    """The port cannot be opened now; `code` says whether to try again."""

    def __init__(self, code: RefusalCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(slots=True)
class Listener:
    """One public port of one agent."""

    port: int
    service: str
    admission: Admission = field(default_factory=Admission)
    closed: bool = False  # for good
    stored: StoredListeners = field(default_factory=StoredListeners)
    sockets: list[socket.socket] = field(default_factory=list)
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _ending: set[trio.CancelScope] = field(default_factory=set)

    @property
    def open(self) -> bool:
        return bool(self.sockets)

    def close(self) -> None:
        """Free the port at once and for good."""
        self.closed = True
        self._scope.cancel()
        for sock in self.sockets:
            self.stored.close(sock)
        self.sockets.clear()
        for scope in self._ending:
            scope.cancel()

    @contextmanager
    def ending(self, scope: trio.CancelScope) -> Iterator[None]:
        """`scope` is cancelled when the port closes."""
        self._ending.add(scope)
        try:
            yield
        finally:
            self._ending.discard(scope)

    def try_open(self, bind: str | None) -> None:
        """Open the port on `bind`, or on all addresses of both families. Raises PortUnavailable."""
        hosts = ["0.0.0.0", "::"] if bind is None else [bind]  # noqa: S104 - public by purpose
        opened: list[socket.socket] = []
        try:
            for host in hosts:
                try:
                    opened.append(self.stored.listen(host, self.port, dual_stack=False))
                except OSError as exc:
                    if host == "::" and exc.errno in _NO_IPV6:
                        continue
                    raise
        except OSError as exc:
            for sock in opened:
                self.stored.close(sock)
            raise _unavailable(self.port, exc) from exc
        self.sockets = opened

    async def serve(
        self,
        bind: str | None,
        *,
        agent: str,
        on_visitor: OnVisitor,
        on_failure: Callable[[], None] = lambda: None,
        opened: Callable[[], None],
    ) -> None:
        """Open the port, trying until it is free, then accept until `close`."""
        try:
            with self._scope:
                await self._open_sometime(bind, opened)
                about = {"agent": agent, "service": self.service, "port": self.port}
                event(log, logging.INFO, "port-open", **about)
                async with trio.open_nursery() as nursery:
                    for sock in self.sockets:
                        nursery.start_soon(accept_forever, sock, on_visitor, on_failure)
        finally:
            self.close()

    async def _open_sometime(self, bind: str | None, opened: Callable[[], None]) -> None:
        while not self.open:
            await trio.sleep(RETRY)
            # A task woken in the turn in which it is cancelled runs once more.
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                self.try_open(bind)
            except PortUnavailable:
                continue
            opened()


_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


def _unavailable(port: int, exc: OSError) -> PortUnavailable:
    if exc.errno == errno.EADDRINUSE:
        return PortUnavailable(RefusalCode.PORT_BUSY, f"another program holds port {port}")
    reason = exc.strerror or str(exc)
    if exc.errno in (errno.EACCES, errno.EPERM):
        reason = "the relay may not open ports below 1024"
    return PortUnavailable(RefusalCode.PORT_FAILED, f"port {port} cannot be opened: {reason}")
