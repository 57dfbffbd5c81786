"""What the steps of `relay-agent doctor` know of the agent that they examine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import LinkDenied
from protocol.wire.hello import Welcome
from relay_agent.config import AgentConfig
from relay_agent.identity.agent_keys import AgentKeys
from relay_agent.identity.enrolment import Enrolment
from relay_agent.link.status import AgentStatus
from relay_agent.services.service import Service

if TYPE_CHECKING:
    from protocol.process.state import StateFolder


@dataclass
class Context:
    """What is known so far; each step may add to it."""

    state: StateFolder
    config_file: Path | None = None
    config: AgentConfig = field(default_factory=AgentConfig)
    addresses: list[str] = field(default_factory=list)  # of the relay, to dial
    welcome: Welcome | None = None
    denial: LinkDenied | None = None
    # Each is there once the step that finds it has succeeded; other steps name that step as a need.
    enrolment: Enrolment = field(init=False)
    running: AgentStatus = field(init=False)  # the last status of the running agent
    agent_keys: AgentKeys = field(init=False)
    filed: tuple[Service, ...] = ()  # the services in the files
    services: tuple[Service, ...] = ()  # those of the running agent, or else the filed ones
    silent: set[str] = field(default_factory=set)  # names of services whose target is silent
