"""Accept without end, whatever the kernel or the callers do."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
from collections.abc import Callable
from typing import Final

import trio

from protocol.process.logs import event
from protocol.wire.identifiers import SocketAddress

log = logging.getLogger(__name__)

# What accept(2) lists as already pending on the one caller it was about to return; the next may be
# well.
_OF_THE_CALLER: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.ENETDOWN,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    }
)
# After any other: mostly we are out of descriptors or memory, and those who hold some are finishing
# meanwhile; a caller notices no such pause. If it never ends, it costs nothing.
_RETRY: Final = 0.1
# Such a state is told of this often: it may come and go with every descriptor.
_TELL_AGAIN: Final = 60.0
# Callers taken in one turn before others run; each costs about 20 µs.
_BURST: Final = 16
BACKLOG: Final = 512


def listen(host: str, port: int, *, dual_stack: bool) -> socket.socket:
    """A listening socket on one literal address. Raises OSError, also for a bad address.

    With `dual_stack` an IPv6 wildcard takes IPv4 callers too.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # After a restart the old process's sockets in TIME-WAIT must not hold the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OverflowError as exc:
        sock.close()
        raise OSError(errno.EINVAL, str(exc)) from exc
    except BaseException:
        sock.close()
        raise
    return sock


async def accept_forever(
    sock: socket.socket,
    on_caller: Callable[[socket.socket, SocketAddress], None],
    on_failure: Callable[[], None] = lambda: None,
) -> None:
    """Call `on_caller(socket, (host, port))` for each caller; it must not wait or raise.

    `on_failure` hears that none can be taken in for now. Returns once `sock` is closed, by
    `stop_accepting`.
    """
    told = -math.inf
    burst = _BURST
    while sock.fileno() >= 0:
        try:
            caller, address = sock.accept()
        except BlockingIOError:
            with contextlib.suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(sock)
            burst = _BURST
            continue
        except OSError as exc:
            if exc.errno not in _OF_THE_CALLER:
                on_failure()
                if trio.current_time() - told >= _TELL_AGAIN:
                    told = trio.current_time()
                    event(log, logging.ERROR, "accept-failed", reason=exc.strerror or str(exc))
                await trio.sleep(_RETRY)
        else:
            on_caller(caller, plain_address(address))
        burst -= 1
        if not burst:
            await trio.lowlevel.checkpoint()
            burst = _BURST


def stop_accepting(sock: socket.socket) -> None:
    """Close a listening socket, whoever waits for it."""
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
        sock.close()


def plain_address(address: SocketAddress | tuple[str, int, int, int]) -> SocketAddress:
    """Host and port, an IPv4 caller on an IPv6 socket as what it is."""
    host = address[0]
    return host.removeprefix("::ffff:") if "." in host else host, address[1]
