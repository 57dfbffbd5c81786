"""Entries of a registry by number: `token(1)` enrols `key(1)`."""

from __future__ import annotations

from protocol.wire.identifiers import AgentKey, Token
from relay_server.net.networks import Admission, parse_networks
from relay_server.registry.registry import EnrolledAgent, Invited, Registry

PORTS = range(11111, 11114)
HOUR = 3600.0
SOME = Admission(allow=parse_networks(["203.0.113.0/24"]), deny=parse_networks(["203.0.113.9"]))


def token(number: int) -> Token:
    return Token(bytes([number]) * 16)


def key(number: int) -> AgentKey:
    return AgentKey(bytes([number]) * 32)


def invite(
    registry: Registry, name: str, number: int, *ports: int, now: float = 0.0, until: float = HOUR
) -> Invited:
    return registry.invite(
        name, token(number), now=now, lifetime=until - now, port_range=PORTS, ports=ports
    )


def enrol(
    registry: Registry, name: str, number: int, *ports: int, now: float = 0.0
) -> EnrolledAgent:
    invite(registry, name, number, *ports, now=now, until=now + HOUR)
    return registry.redeem(token(number), key(number), now)


def invite_many(registry: Registry) -> None:
    for number in range(2, 250):
        invite(registry, f"name-{number}", number, 10_000 + number)
