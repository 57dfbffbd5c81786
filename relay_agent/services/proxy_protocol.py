"""The header that tells a target who the visitor is, as specified in HAProxy's proxy-protocol.txt.

It is only for targets that expect it: to an SSH server it is garbage. The source is the visitor. Of
the destination the agent knows the public port, but not which of the relay's addresses the visitor
used, so that address is the unspecified one (0.0.0.0 or ::).
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, Literal, TypeAlias

from protocol.wire.identifiers import SocketAddress

Version: TypeAlias = Literal["v1", "v2"]

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
# Version 2 in the upper half; the lower half says that the connection is made for somebody else.
_PROXIED: Final = 0x21
# Address family in the upper half; the lower half says TCP.
_TCP4, _TCP6, _UNSPECIFIED = 0x11, 0x21, 0x00


def header(version: Version, source: SocketAddress, public_port: int) -> bytes:
    """The bytes that go before the visitor's first one."""
    try:
        address = ipaddress.ip_address(source[0].partition("%")[0])
    except ValueError:  # the relay may send any text; the header must be valid all the same
        return b"PROXY UNKNOWN\r\n" if version == "v1" else _v2(_UNSPECIFIED, b"")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    here = type(address)(0)
    if version == "v1":
        line = f"PROXY TCP{address.version} {address} {here} {source[1]} {public_port}\r\n"
        return line.encode("ascii")
    ports = struct.pack(">HH", source[1], public_port)
    return _v2(_TCP4 if address.version == 4 else _TCP6, address.packed + here.packed + ports)


def _v2(family: int, addresses: bytes) -> bytes:
    return _SIGNATURE + struct.pack(">BBH", _PROXIED, family, len(addresses)) + addresses
