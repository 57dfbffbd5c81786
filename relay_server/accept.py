"""Accept without end, whatever the kernel or the callers do."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

import trio

from protocol.process.logs import event

log = logging.getLogger(__name__)

# Out of descriptors or memory: those who hold some are finishing meanwhile; a caller waits in the
# kernel's backlog no longer than it would notice.
_RETRY: Final = 0.1
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
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
    sock: socket.socket, on_caller: Callable[[socket.socket, tuple[str, int]], None]
) -> None:
    """Call `on_caller(socket, (host, port))` for each caller; it must not wait or raise."""
    starved = False
    burst = _BURST
    while True:
        try:
            caller, address = sock.accept()
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock.fileno())
            burst = _BURST
            continue
        except OSError as exc:
            if exc.errno in _EXHAUSTED:
                if not starved:
                    event(log, logging.ERROR, "accept-starved", reason=exc.strerror)
                starved = True
                await trio.sleep(_RETRY)
            # Anything else is about that one caller, who is gone already (accept(2)).
            continue
        starved = False
        on_caller(caller, plain_address(address))
        burst -= 1
        if not burst:
            await trio.lowlevel.checkpoint()
            burst = _BURST


def plain_address(address: tuple[str, int] | tuple[str, int, int, int]) -> tuple[str, int]:
    """Host and port, an IPv4 caller on an IPv6 socket as what it is."""
    host = address[0]
    return host.removeprefix("::ffff:") if "." in host else host, address[1]
