"""Sets of networks that an address is looked up in, however many they are."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from protocol.process.config import each, setting

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Visitors over IPv4 are known by their IPv4 address, whatever socket they came to.
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


def parse_network(text: str) -> Network:
    """Read an address or a network in CIDR notation. Raises ValueError with what is expected."""
    try:
        network = ipaddress.ip_network(text, strict=False)
        network_alone = ipaddress.ip_network(text.partition("/")[0])
    except ValueError:
        raise ValueError(
            "expected an address or a network such as 203.0.113.0/24 or 2001:db8::/32,"
            f" not {text!r}"
        ) from None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        raise ValueError(f"expected an IPv4 network as such, not {text!r}")
    if network_alone.network_address != network.network_address:
        # More often a slip in the prefix than in the address: better to ask than to guess.
        raise ValueError(f"expected {network}, if that is what {text!r} stands for")
    return network


class Networks:
    """Never changes. `host in networks` takes a look-up for each length of prefix among them."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks = tuple(networks)
        self._prefixes: dict[tuple[int, int], set[int]] = {}
        for network in self._networks:
            shift = network.max_prefixlen - network.prefixlen
            known = self._prefixes.setdefault((network.version, shift), set())
            known.add(int(network.network_address) >> shift)

    def __contains__(self, host: str) -> bool:
        address = ipaddress.ip_address(host.partition("%")[0])
        value = int(address)
        return any(
            address.version == version and value >> shift in known
            for (version, shift), known in self._prefixes.items()
        )

    def __len__(self) -> int:
        return len(self._networks)

    def __iter__(self) -> Iterator[Network]:
        return iter(self._networks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and set(self) == set(other)

    def __hash__(self) -> int:
        return hash(frozenset(self))

    def __repr__(self) -> str:
        return f"Networks({', '.join(map(str, self))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Which visitors a port admits: none from `deny`, and if `allow` names any, only those."""

    allow: Networks = field(default_factory=Networks)
    deny: Networks = field(default_factory=Networks)

    def denies(self, host: str) -> bool:
        return host in self.deny

    def allows(self, host: str) -> bool:
        return not self.allow or host in self.allow

    def __str__(self) -> str:
        allowed = ", ".join(map(str, self.allow)) or "everybody"
        return f"{allowed}, but not {', '.join(map(str, self.deny))}" if self.deny else allowed


def parse_networks(value: object) -> Networks:
    return Networks(each(parse_network)(value))


def networks_setting(default: Networks | None, meaning: str) -> Any:
    """A field of a configuration."""
    return setting(default, meaning, parse=parse_networks, syntax="array of networks")
