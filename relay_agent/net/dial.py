"""Open a TCP connection to the relay by any of its names.

The hosts are tried in the order given, each with a head start over the next, so that one that
swallows SYNs (a blocked port, a dead address family) delays the others by a second and no more.
Within a host the same is done for the addresses of its name: happy eyeballs, RFC 8305.

Names are resolved afresh at every dial, since a relay behind dynamic DNS moves. Two things guard
against a resolver that does not answer, which is what a router sees whenever its uplink is gone:

- Few look-ups are in flight for each name. `getaddrinfo` runs in a thread that cannot be
  interrupted; a dial that gives up leaves it behind, and a new one for each attempt would soon use
  up trio's threads. So a look-up is no dial's own, and all dials that want the same name meanwhile
  wait for it. Only when it is old is another begun beside it: it may have gone to the resolver of a
  network that this machine has left.
- The address that last worked is tried as well when the look-up fails or is slow.

An address that does not answer is tried again over a fresh socket, since the kernel doubles the
pauses between its SYNs: a path that heals in the fourth second would be found in the eighth.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import trio
from trio.socket import SocketType

from protocol.process.address import HostPort

# For name and TCP, unless the caller has less time: a relay that needs longer is of no use to a
# shell.
DIAL_TIMEOUT: Final = 10.0
# Between hosts: the first SYN is sent again after 1 s, and most long paths answer well within it.
HOST_HEAD_START: Final = 1.0
# Between the addresses of one name: RFC 8305 recommends 250 ms.
ADDRESS_HEAD_START: Final = 0.25
# Between fresh sockets to one address. With the kernel's SYNs 0, 1, 3 and 7 s after the start of
# each, one leaves every second.
ASK_AGAIN: Final = 2.0
_ASKS: Final = int(DIAL_TIMEOUT / ASK_AGAIN)
# A look-up over a sound uplink takes tens of milliseconds.
NAME_HEAD_START: Final = 1.0

# A sound resolver has answered by then; after that another look-up may be begun.
LOOK_AGAIN: Final = 3.0
# trio has 40 threads; a relay has up to eight names.
MOST_LOOK_UPS: Final = 3

# Family, and the address as the socket module has it: a tuple of two for IPv4 and of four for IPv6.
# The port in it is replaced when it is dialled.
_Address: TypeAlias = tuple[int, tuple[Any, ...]]
_Attempt: TypeAlias = Callable[[], Awaitable[SocketType | None]]
# The outcome of each address so far, and of the name look-up under the host's own name.
_Progress: TypeAlias = dict[str, str]
_NO_ANSWER: Final = "no answer"


class DialFailed(Exception):  # noqa: N818 - an outcome, not a defect
    """No host could be reached; the text is one line that names each and why."""


async def dial(hosts: Sequence[HostPort], *, deadline: float | None = None) -> SocketType:
    """Connect to the first of `hosts` that answers; TCP_NODELAY is set on the socket.

    `deadline` is absolute, on trio's clock, so that a caller can let the handshake share it.
    Raises `DialFailed` when every host failed or the deadline passed.
    """
    names = _names_of_this_run()
    if deadline is None:
        deadline = trio.current_time() + DIAL_TIMEOUT
    progress: dict[HostPort, _Progress] = {host: {} for host in hosts}
    sock = None
    with trio.CancelScope(deadline=deadline):
        sock = await _race(
            [partial(_dial_host, names, host, progress[host]) for host in hosts],
            head_start=HOST_HEAD_START,
        )
    if sock is None:
        raise DialFailed("; ".join(_describe(host, seen) for host, seen in progress.items()))
    return sock


async def look_up(name: str) -> list[_Address]:
    """The addresses of `name`, with port 0. It shares the look-ups of dials that are in flight.

    Raises OSError, or ValueError if that cannot be a host's name.
    """
    return await _names_of_this_run().look_up(name)


def _describe(host: HostPort, seen: _Progress) -> str:
    if not seen:
        return f"{host}: not tried in time"
    # A host given as an address has one outcome, and repeating the address says nothing.
    parts = [text if what == host.host else f"{what} {text}" for what, text in seen.items()]
    return f"{host}: {', '.join(parts)}"


async def _dial_host(names: _Names, host: HostPort, seen: _Progress) -> SocketType | None:
    attempts: list[_Attempt] = [partial(_dial_name, names, host, seen)]
    known = names.last_good.get(host.host)
    if known is not None:
        attempts.append(partial(_dial_address, names, host, known, seen))
    return await _race(attempts, head_start=NAME_HEAD_START)


async def _dial_name(names: _Names, host: HostPort, seen: _Progress) -> SocketType | None:
    seen[host.host] = "name look-up unanswered"
    try:
        addresses = await names.look_up(host.host)
    except (OSError, ValueError) as error:
        seen[host.host] = f"name look-up failed ({_reason(error)})"
        return None
    del seen[host.host]
    return await _race(
        [partial(_dial_address, names, host, address, seen) for address in addresses],
        head_start=ADDRESS_HEAD_START,
    )


async def _dial_address(
    names: _Names, host: HostPort, address: _Address, seen: _Progress
) -> SocketType | None:
    ip = address[1][0]
    seen[ip] = _NO_ANSWER

    async def ask() -> SocketType | None:
        # Any answer, even a refusal, ends the retries.
        return await _connect(names, host, address, seen) if seen[ip] == _NO_ANSWER else None

    return await _race([ask] * _ASKS, head_start=ASK_AGAIN)


async def _connect(
    names: _Names, host: HostPort, address: _Address, seen: _Progress
) -> SocketType | None:
    family, (ip, _, *scope) = address
    try:
        # This may fail already: a kernel without IPv6, or no file descriptor left.
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        seen[ip] = _reason(error)
        return None
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await sock.connect((ip, host.port, *scope))
    except OSError as error:
        sock.close()
        seen[ip] = _reason(error)
        return None
    except BaseException:
        sock.close()
        raise
    names.last_good[host.host] = address
    return sock


def _reason(error: OSError | ValueError) -> str:
    # trio puts the address in front of what connect(2) said; the plain words are enough here.
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno:
        return os.strerror(error.errno)
    return getattr(error, "strerror", None) or str(error)


async def _race(attempts: Sequence[_Attempt], *, head_start: float) -> SocketType | None:
    """The socket of the attempt that succeeds first; None when all failed.

    An attempt begins when the one before it failed or has had its head start.
    """
    winner: SocketType | None = None

    async def run(attempt: _Attempt, failed: trio.Event) -> None:
        nonlocal winner
        sock = await attempt()
        if sock is None:
            failed.set()
        elif winner is None:
            winner = sock
            nursery.cancel_scope.cancel()
        else:  # two attempts succeeded in one turn
            sock.close()

    try:
        async with trio.open_nursery() as nursery:
            for attempt in attempts:
                failed = trio.Event()
                nursery.start_soon(run, attempt, failed)
                with trio.move_on_after(head_start):
                    await failed.wait()
    except BaseException:
        # Cancelled before it was returned: nothing else has a reference to this socket.
        if winner is not None:
            winner.close()
        raise
    return winner


class _LookUp:
    """The calls of `getaddrinfo` under way for one name and, once `done`, what they found."""

    __slots__ = ("_running", "addresses", "asked_at", "done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.addresses: list[_Address] = []
        self.error: OSError | ValueError | None = None
        self.asked_at = -math.inf
        self._running = 0

    @property
    def may_ask_again(self) -> bool:
        """Whether the look-ups under way may have gone to a resolver that is no longer there."""
        stale = trio.current_time() - self.asked_at >= LOOK_AGAIN
        return stale and self._running < MOST_LOOK_UPS

    def begin(self) -> None:
        """Count one that `run` is about to make."""
        self._running += 1
        self.asked_at = trio.current_time()

    async def run(self, name: str) -> None:
        """Ask once. `done` is set by the first answer, or when all have failed."""
        await self._ask(name)
        self._running -= 1
        if self.addresses or not self._running:
            self.done.set()

    async def _ask(self, name: str) -> None:
        try:
            found = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            self.addresses = _alternate([(family, address) for family, *_, address in found])
            self.error = None
        except (OSError, ValueError) as error:  # ValueError: no valid host name
            self.error = error
        except RuntimeError as error:  # no thread can be started: memory is short
            self.error = OSError(str(error))


class _Names:
    """What this process knows about names: look-ups in flight, and addresses that worked."""

    def __init__(self) -> None:
        self.last_good: dict[str, _Address] = {}
        self._in_flight: dict[str, _LookUp] = {}

    async def look_up(self, name: str) -> list[_Address]:
        looking = self._in_flight.get(name)
        if looking is None:
            looking = self._in_flight[name] = _LookUp()
        if looking.may_ask_again:
            looking.begin()
            # In a system task, so that it outlives a dial that gives up.
            trio.lowlevel.spawn_system_task(self._run, name, looking)
        await looking.done.wait()
        if looking.error is not None:
            raise looking.error
        return looking.addresses

    async def _run(self, name: str, looking: _LookUp) -> None:
        await looking.run(name)
        if looking.done.is_set() and self._in_flight.get(name) is looking:
            del self._in_flight[name]


def _alternate(addresses: list[_Address]) -> list[_Address]:
    """Put the first address of the other family second (RFC 6555, section 5.4).

    Otherwise a broken family would be waited for as often as it has addresses.
    """
    for index, address in enumerate(addresses):
        if address[0] != addresses[0][0]:
            return [addresses[0], address, *addresses[1:index], *addresses[index + 1 :]]
    return addresses


_names: Final[trio.lowlevel.RunVar[_Names]] = trio.lowlevel.RunVar("relay_agent.net.dial")


def _names_of_this_run() -> _Names:
    try:
        return _names.get()
    except LookupError:
        names = _Names()
        _names.set(names)
        return names
