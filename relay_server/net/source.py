"""What counts as one source of connections."""

from __future__ import annotations

import ipaddress


def source_of(host: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 that one IPv6 subscriber has."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(ipaddress.IPv6Address(int(address) >> 64 << 64))
