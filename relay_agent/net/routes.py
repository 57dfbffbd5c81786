"""What the kernel says about the route to the relay: rtnetlink(7), over a raw AF_NETLINK socket.

The kernel tells of every change of link, address and route, most of which mean nothing here: router
advertisements renew lifetimes, containers come and go. So a change only leads to a look, after a
short pause, and what is looked at is one thing: *which route would a packet to the relay take now,
and has that interface's carrier changed since?* A route look-up sends nothing.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from protocol.process.logs import event

log = logging.getLogger(__name__)

# An interface that comes up brings link, address and route within this; looking earlier sees half.
DEBOUNCE: Final = 0.2
# Stands for "anywhere" while the relay's address is not known yet (RFC 5737, RFC 3849).
ANYWHERE: Final = ("192.0.2.1", "2001:db8::1")
# The kernel answers a look-up before send() returns; more means that it will not.
_ANSWER_TIMEOUT: Final = 1.0
# After an error of the subscription, which is then begun anew: it may be memory that is short.
REOPEN: Final = 60.0

# linux/rtnetlink.h, linux/netlink.h, linux/if.h
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # link; addresses and routes of both families
_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_RTM_NEWROUTE: Final = 24
_RTM_GETROUTE: Final = 26
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST: Final = 1
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PREFSRC: Final = 7
_IFF_LOWER_UP: Final = 0x10000

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # family, destination's bits, …
_LINK: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type


@dataclass(frozen=True, slots=True)
class Route:
    """How a packet would leave; `carrier_changes` counts those of its interface that were seen."""

    interface: int
    gateway: str
    source: str
    carrier_changes: int


class Netlink:
    """A subscription to changes, and a socket for look-ups. Raises OSError off Linux."""

    def __init__(self) -> None:
        self._events = _open(_GROUPS)
        try:
            self._queries = _open(0)
        except OSError:
            self._events.close()
            raise
        self._queries.settimeout(_ANSWER_TIMEOUT)
        self._sequence = 0
        self._carrier: dict[int, bool] = {}  # by interface, once it was told
        self._carrier_changes: dict[int, int] = {}

    def close(self) -> None:
        self._events.close()
        self._queries.close()

    async def wait_change(self) -> None:
        """Until the kernel tells of something, and for the pause after it."""
        await trio.lowlevel.wait_readable(self._events.fileno())
        await trio.sleep(DEBOUNCE)
        self._drain()

    def _drain(self) -> None:
        while True:
            try:
                data = self._events.recv(65536)
            except BlockingIOError:
                return
            except OSError as exc:
                if (
                    exc.errno != errno.ENOBUFS
                ):  # some were missed; the look that follows sees the sum
                    raise
                continue
            for kind, _, body in _messages(data):
                if kind in (_RTM_NEWLINK, _RTM_DELLINK) and len(body) >= _LINK.size:
                    _, _, index, flags, _ = _LINK.unpack_from(body)
                    self._note_carrier(index, kind == _RTM_NEWLINK and bool(flags & _IFF_LOWER_UP))

    def _note_carrier(self, interface: int, carrier: bool) -> None:
        if self._carrier.get(interface, True) != carrier:
            self._carrier_changes[interface] = self._carrier_changes.get(interface, 0) + 1
        self._carrier[interface] = carrier

    def route_to(self, address: str) -> Route | None:
        """The kernel's choice of route to an IP address; None if there is none."""
        try:
            destination = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return None
        self._sequence += 1
        family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
        packed = destination.packed
        body = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
        body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _RTA_DST) + packed
        length = _HEADER.size + len(body)
        request = _HEADER.pack(length, _RTM_GETROUTE, _NLM_F_REQUEST, self._sequence, 0) + body
        try:
            self._queries.send(request)
            while True:
                for kind, sequence, body in _messages(self._queries.recv(65536)):
                    if sequence == self._sequence:  # not what came too late for an earlier one
                        return self._read_route(body) if kind == _RTM_NEWROUTE else None
        except OSError:
            return None

    def _read_route(self, body: bytes) -> Route:
        found = dict(_attributes(body[_ROUTE.size :]))
        interface = int.from_bytes(found.get(_RTA_OIF, b""), sys.byteorder)
        return Route(
            interface=interface,
            gateway=_address(found.get(_RTA_GATEWAY, b"")),
            source=_address(found.get(_RTA_PREFSRC, b"")),
            carrier_changes=self._carrier_changes.get(interface, 0),
        )


def _open(groups: int) -> socket.socket:
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        sock.setblocking(False)
        sock.bind((0, groups))
    except BaseException:
        sock.close()
        raise
    return sock


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and body of each."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3  # NLMSG_ALIGN


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3  # RTA_ALIGN


def _address(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed)) if len(packed) in (4, 16) else ""


async def watch(
    addresses: Callable[[], list[str]],
    wait_addresses: Callable[[], Awaitable[None]],
    on_change: Callable[[], None],
) -> None:
    """Call `on_change` whenever the route to one of `addresses` becomes another. Never returns.

    `addresses` is called anew at each look; if it returns none, the route to anywhere is watched.
    `wait_addresses` must return once they may have become others. Neither `addresses` nor
    `on_change` may wait or raise. Where there is no netlink, or while it fails, `on_change` is not
    called, and the agent's own timers must do.
    """
    told = ""
    while True:
        try:
            await _watch(addresses, wait_addresses, on_change)
        except OSError as exc:
            reason = exc.strerror or str(exc)
            if reason != told:
                event(log, logging.INFO, "no-network-events", reason=reason)
            told = reason
        await trio.sleep(REOPEN)


async def _watch(
    addresses: Callable[[], list[str]],
    wait_addresses: Callable[[], Awaitable[None]],
    on_change: Callable[[], None],
) -> None:
    """Raises OSError, and does nothing else but watch."""
    netlink = Netlink()
    try:
        seen: dict[str, Route | None] = {}
        while True:
            now = {one: netlink.route_to(one) for one in addresses() or ANYWHERE}
            if any(seen[one] != route for one, route in now.items() if one in seen):
                on_change()
            seen = now
            # An address that is new must be seen before something changes for it.
            await _first_of(netlink.wait_change, wait_addresses)
    finally:
        netlink.close()


async def _first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """Return when one of `waits` does, or raise its OSError."""
    failed: list[OSError] = []

    async def run(wait: Callable[[], Awaitable[None]]) -> None:
        try:
            await wait()
        except OSError as exc:  # bare, and not in a nursery's group
            failed.append(exc)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for wait in waits:
            nursery.start_soon(run, wait)
    if failed:
        raise failed[0]
