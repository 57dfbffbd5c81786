"""What the steps of `relay-server doctor` know of the relay that they examine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.process.address import HostPort
from relay_server.agents.status import AgentStatus, RelayStatus
from relay_server.config import ServerConfig
from relay_server.registry.registry import EnrolledAgent

if TYPE_CHECKING:
    from protocol.process.state import StateFolder


@dataclass
class Context:
    """What is known so far; each step may add to it."""

    state: StateFolder
    config_file: Path | None = None
    config: ServerConfig = field(default_factory=ServerConfig)
    running: RelayStatus | None = None  # the status of the running relay
    agents: list[EnrolledAgent] = field(default_factory=list)
    hosts: tuple[HostPort, ...] = ()  # that invitations tell agents to dial
    link_ports: tuple[int, ...] = ()

    @property
    def present(self) -> list[AgentStatus]:
        """The agents that the running relay knows of; none if no relay runs."""
        return [] if self.running is None else self.running["agents"]

    @property
    def public_ports(self) -> list[int]:
        return sorted(port for agent in self.agents for port in agent.ports)
