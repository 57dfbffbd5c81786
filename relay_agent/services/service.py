"""A service: what this agent publishes, and the local address behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from protocol.process.address import HostPort, parse_host_port, parse_port
from protocol.process.names import parse_name
from relay_agent.services.proxy_protocol import Version


@dataclass(frozen=True, slots=True)
class Service:
    """A name to publish and the local address to dial for it.

    `port` is the public port asked for; None leaves it to the first port of the invitation.
    """

    name: str
    target: HostPort
    port: int | None = None
    proxy_protocol: Version | None = None


class ServiceStatus(TypedDict):
    """What became of the publication of a service, as it stands in the JSON of `status`."""

    service: str
    target: str  # HOST:PORT
    port: int | None
    state: Literal["asked", "open", "refused"]
    reason: str | None  # of the refusal


def parse_service(text: str) -> Service:
    """Read `NAME=HOST:PORT[@PUBLIC_PORT]`. Raises ValueError with what is expected."""
    name, equals, rest = text.partition("=")
    target, at, port = rest.rpartition("@") if "@" in rest else (rest, "", "")
    if not equals:
        raise ValueError(f"expected NAME=HOST:PORT[@PUBLIC_PORT], not {text!r}")
    return Service(
        parse_service_name(name), parse_host_port(target), parse_port(port) if at else None
    )


def parse_service_name(text: str) -> str:
    return parse_name(text, "service name")
