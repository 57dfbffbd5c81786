"""Dial a service's target for one visitor.

A target on this machine is dialled from an address in 127.0.0.0/8 that stands for the visitor's, so
that the SSH server's own per-address limits, penalties and logs see visitors apart: dropbear takes
five unauthenticated callers an address, and through any tunnel all of them would be 127.0.0.1.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import socket
from typing import Final

import trio

from protocol.process.address import HostPort
from protocol.transport.sockets import plain, prepare_spliced

# A target on this machine or in its LAN answers in milliseconds; a visitor's ssh waits longer.
TARGET_TIMEOUT: Final = 10.0


async def dial_target(target: HostPort, visitor: str) -> socket.socket:
    """Connect to `target` for a visitor from the address `visitor`; ready to be spliced.

    Raises OSError.
    """
    with trio.move_on_after(TARGET_TIMEOUT):
        addresses = await trio.socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        failure = OSError(errno.EHOSTUNREACH, "no address")
        for family, kind, proto, _, address in addresses:
            sock = trio.socket.socket(family, kind, proto)
            try:
                if family == socket.AF_INET and str(address[0]).startswith("127."):
                    await _bind(sock, loopback_source(visitor))
                await sock.connect(address)
                taken = plain(sock)
            except OSError as exc:
                sock.close()
                failure = exc
                continue
            except BaseException:
                sock.close()
                raise
            prepare_spliced(taken)
            return taken
        raise failure
    raise TimeoutError(errno.ETIMEDOUT, f"no answer within {TARGET_TIMEOUT:g} s")


async def _bind(sock: trio.socket.SocketType, source: str) -> None:
    try:
        await sock.bind((source, 0))
    except OSError as exc:
        # Off Linux only 127.0.0.1 itself exists; visitors then look alike, as they would anyway.
        if exc.errno != errno.EADDRNOTAVAIL:
            raise


def loopback_source(visitor: str) -> str:
    """The address in 127.0.0.0/8 that stands for `visitor`, always the same one.

    IPv6 visitors are told apart by /64, since one host commonly has a whole one. 127.0.0.0/16 and
    the last octets 0 and 255 are left out: real local callers come from there.
    """
    try:
        address = ipaddress.ip_address(visitor.partition("%")[0])
    except ValueError:
        return "127.0.0.1"
    whole = address.packed if address.version == 4 else address.packed[:8]
    digest = hashlib.sha256(whole).digest()
    return f"127.{1 + digest[0] % 254}.{digest[1]}.{1 + digest[2] % 254}"
