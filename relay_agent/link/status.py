"""What a running agent answers on its control socket, as it stands in JSON.

Scripts read it through `--json`: a key keeps its name and its meaning.
"""

from __future__ import annotations

from typing import TypedDict, cast

from protocol.process.control.client import SOCKET, ask
from protocol.process.control.schema import LinkStatus
from protocol.process.state import StateFolder
from protocol.transport.status import StreamStatus
from relay_agent.services.service import ServiceStatus


class AgentStatus(TypedDict):
    """The answer to `status`."""

    version: str
    age: float  # seconds since it started
    name: str  # that the relay has for it; empty before the first link
    relay: list[str]  # HOST:PORT, in the order in which they are dialled
    attached: bool
    failure: str  # of the last attempt to attach; empty once there is a link
    link: LinkStatus
    services: list[ServiceStatus]
    streams: list[StreamStatus]


def ask_status(state: StateFolder) -> AgentStatus | None:
    """Ask the agent that runs on `state`; None if none runs. Raises CommandFailed."""
    return cast("AgentStatus | None", ask(state.path / SOCKET, "status"))
