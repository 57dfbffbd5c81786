"""Dial a service's target for one visitor.

A target on this machine is dialled from an address in 127.0.0.0/8 that stands for the visitor's.
With it the SSH server's own limits, penalties and log lines for each address tell visitors apart:
dropbear takes five unauthenticated callers from one address, and through a tunnel all of them would
come from 127.0.0.1.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import socket
from typing import Any, Final

import trio

from protocol.process.address import HostPort
from protocol.transport.sockets import prepare_spliced
from relay_agent.net.dial import look_up

# A target on this machine or in its LAN answers in milliseconds; the visitor's ssh waits longer.
TARGET_TIMEOUT: Final = 10.0


async def dial_target(target: HostPort, visitor: str) -> socket.socket:
    """Connect to `target` for a visitor from the address `visitor`; ready to be spliced.

    Raises OSError.
    """
    with trio.move_on_after(TARGET_TIMEOUT):
        failure = OSError(errno.EHOSTUNREACH, "the name has no address")
        for family, (host, _, *scope) in await _addresses(target.host):
            try:
                return await _connect(family, (host, target.port, *scope), visitor)
            except OSError as exc:
                failure = exc
        raise failure
    raise TimeoutError(errno.ETIMEDOUT, f"no answer within {TARGET_TIMEOUT:g} s")


async def _addresses(name: str) -> list[tuple[int, tuple[Any, ...]]]:
    try:
        return await look_up(name)
    except ValueError as exc:  # no valid host name
        raise OSError(errno.EINVAL, str(exc)) from exc


async def _connect(family: int, address: tuple[Any, ...], visitor: str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        prepare_spliced(sock)
        if family == socket.AF_INET and _is_here(address[0]):
            _bind(sock, loopback_source(visitor))
        try:
            sock.connect(address)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock.fileno())
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _is_here(host: str) -> bool:
    """Whether the IPv4 address is this machine's own, such as a router's in its LAN."""
    if host.startswith("127."):
        return True
    # Connecting a UDP socket sends nothing, but shows which source address the kernel would take:
    # for an address of this machine, that address itself.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as question:
        try:
            question.connect((host, 9))
        except OSError:
            return False
        return bool(question.getsockname()[0] == host)


def _bind(sock: socket.socket, source: str) -> None:
    try:
        sock.bind((source, 0))
    except OSError as exc:
        # Off Linux only 127.0.0.1 itself exists; all visitors then have that address.
        if exc.errno != errno.EADDRNOTAVAIL:
            raise


def loopback_source(visitor: str) -> str:
    """The address in 127.0.0.0/8 that stands for `visitor`, always the same one.

    IPv6 visitors are told apart by /64, since one host commonly has a whole one. 127.0.0.0/16 and
    the last octets 0 and 255 are left out: real local callers have such addresses, and a relay may
    send any address for a visitor.
    """
    digest = hashlib.sha256(_told_apart(visitor)).digest()
    return f"127.{1 + digest[0] % 254}.{digest[1]}.{1 + digest[2] % 254}"


def _told_apart(visitor: str) -> bytes:
    try:
        address = ipaddress.ip_address(visitor.partition("%")[0])
    except ValueError:
        return visitor.encode()
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return mapped.packed if mapped else address.packed[:8]
    return address.packed
