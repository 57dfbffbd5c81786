"""A relay, an agent and what the agent leads to, all at work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from tests.support.blocking_sockets import Target
from tests.support.ports import LOOPBACK, free_port
from tests.support.programs import Agent, Relay, services
from tests.support.ssh import SshServer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """A relay and an agent at work, and the public ports of the agent's three services."""

    relay: Relay
    agent: Agent
    dropbear_port: int
    openssh_port: int
    raw_port: int
    target: Target
    invitation: str


def run_house(folder: Path, dropbear: SshServer, openssh: SshServer) -> Iterator[House]:
    relay, agent, target = Relay(folder / "relay"), Agent(folder / "agent"), Target()
    ports = [free_port() for _ in range(3)]
    try:
        relay.start()
        invitation = relay.invite("home", *ports)
        agent.join(invitation, f"ssh={LOOPBACK}:{dropbear.port}@{ports[0]}")
        # Joining visits each service and waits for what it says; the raw one has nothing to say,
        # so it is left out there.
        agent.configure(
            services(
                ("ssh", dropbear.port, ports[0]),
                ("openssh", openssh.port, ports[1]),
                ("raw", target.port, ports[2]),
            )
        )
        agent.start(*ports)
        # Read as well as written, so that tests can tell what comes later from it.
        for port in ports:
            relay.process.wait_for_line(rf" port-open .*\bport={port}\b")
        yield House(
            relay=relay,
            agent=agent,
            dropbear_port=ports[0],
            openssh_port=ports[1],
            raw_port=ports[2],
            target=target,
            invitation=invitation,
        )
    finally:
        agent.stop()
        relay.stop()
        target.close()
    for side in (relay, agent):
        said = side.process.describe()
        assert "Traceback" not in said, said


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """The public port through which one of the SSH servers is reached."""

    port: int
    server: SshServer
