"""A host and a port, as users write them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

# RFC 1123, and the underscore that real zones have. International names arrive as xn--….
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_MAX_NAME: Final = 253  # what the DNS can carry


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """`host` is a name or an address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_host_port(text: str, *, default_port: int | None = None) -> HostPort:
    """Read `HOST:PORT`, or `HOST` alone where there is a default; an IPv6 address has brackets.

    Raises ValueError with what is expected.
    """
    expected = "HOST:PORT" if default_port is None else "HOST or HOST:PORT"
    wrong = ValueError(f"expected {expected} ([ADDRESS]:PORT for IPv6), not {text!r}")
    host, colon, port = text.rpartition(":")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise wrong
        colon, port = rest[:1], rest[1:]
    elif text.count(":") != 1:  # a bare IPv6 address, unless there is no colon at all
        host, colon, port = text, "", ""
        if ":" in text and default_port is None:
            raise wrong
    if not is_host(host):
        raise wrong
    if not colon and default_port is not None:
        return HostPort(host, default_port)
    if not (port.isascii() and port.isdigit()):
        raise wrong
    if not _is_port(port):
        raise ValueError(f"expected a port from 1 to 65535 in {text!r}")
    return HostPort(host, int(port))


def parse_port(text: str) -> int:
    """Read a port. Raises ValueError with what is expected."""
    if not _is_port(text):
        raise ValueError(f"expected a port from 1 to 65535, not {text!r}")
    return int(text)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535


def is_address(text: str) -> bool:
    """Whether `text` is an IPv4 or IPv6 address (the latter possibly with a zone)."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_host(text: str) -> bool:
    """Whether `text` is an address or could be a name."""
    if is_address(text):
        return True
    labels = text.removesuffix(".").split(".")
    if len(text) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        return False
    # 10.0.0 and 300.1.1.1 are mistyped addresses, which resolvers would read in ways of their own.
    return not labels[-1].isdigit()
