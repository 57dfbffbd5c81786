"""A service: what this agent publishes, and the local address behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from protocol.process.address import HostPort, parse_host_port
from relay_agent.services.proxy_protocol import Version

# Room for a word or two; the relay puts names into its log and its tables.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


@dataclass(frozen=True, slots=True)
class Service:
    """A name to publish and the local address to dial for it.

    `port` is the public port asked for; None leaves it to the first port of the invitation.
    """

    name: str
    target: HostPort
    port: int | None = None
    proxy_protocol: Version | None = None


def parse_service(text: str) -> Service:
    """Read `NAME=HOST:PORT[@PUBLIC_PORT]`. Raises ValueError with what is expected."""
    name, equals, rest = text.partition("=")
    target, at, port = rest.rpartition("@") if "@" in rest else (rest, "", "")
    if not equals:
        raise ValueError(f"expected NAME=HOST:PORT[@PUBLIC_PORT], not {text!r}")
    return Service(parse_name(name), parse_host_port(target), parse_port(port) if at else None)


def parse_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"expected a service name of 1 to 32 letters, digits, '.', '_' or '-', not {text!r}"
        )
    return text


def parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError(f"expected a port from 1 to 65535, not {text!r}")
    return int(text)
