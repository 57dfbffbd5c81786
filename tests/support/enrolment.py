"""What an agent has after it enrolled."""

from __future__ import annotations

from protocol.process.address import HostPort
from protocol.wire.identifiers import RelayKey, Token
from relay_agent.identity.enrolment import Enrolment
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.services.service import Service

TOKEN, OTHER_TOKEN = Token(b"t" * 16), Token(b"o" * 16)


def enrolment(name: str = "home", port: int = 11111) -> Enrolment:
    return Enrolment(
        name=name,
        relay=RelayIdentity(
            hosts=(HostPort("relay.test", 7022), HostPort("2001:db8::1", 443)),
            key=RelayKey(bytes(range(32))),
        ),
        services=(
            Service("ssh", HostPort("127.0.0.1", 22), port),
            Service("web.2", HostPort("::1", 80), 11112),
        ),
    )
