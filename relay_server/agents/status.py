"""What a running relay answers on its control socket, as it stands in JSON.

Scripts read it through `--json`: a key keeps its name and its meaning.
"""

from __future__ import annotations

from typing import Literal, TypedDict, cast

from protocol.process.control.client import SOCKET, ask
from protocol.process.control.schema import LinkStatus
from protocol.process.limits import Descriptors
from protocol.process.state import StateFolder
from protocol.transport.status import StreamStatus


class ServiceStatus(TypedDict):
    """What is, or was, on a public port of an agent."""

    service: str
    port: int
    state: Literal["open", "busy", "closed"]  # busy: another program holds the port
    published: bool
    refused: dict[str, int]  # visitors by `Refusal`, since the relay started


class AgentStatus(TypedDict):
    name: str
    attached: bool
    link: LinkStatus
    services: list[ServiceStatus]
    streams: list[StreamStatus]
    waiting: int  # visitors that wait for the agent


class RelayStatus(Descriptors):
    """The answer to `status`."""

    version: str
    age: float  # seconds since it started
    listening: list[str]  # HOST:PORT where agents dial in
    agents: list[AgentStatus]  # those that attached since the start


class ServiceRefusals(TypedDict):
    service: str
    port: int
    refused: dict[str, int]


class AgentOverview(TypedDict):
    name: str
    attached: bool
    address: str
    since: float  # seconds ago that it came or went
    streams: int
    ports: list[int]  # those that are open
    refused: dict[str, int]
    services: list[ServiceRefusals]
    following: bool  # whether it will come under the relay's new key by itself, and soon
    told: bool | None  # whether it knows the relay's further hosts; None if it never will


class Overview(TypedDict):
    """The answer to `agents`."""

    agents: list[AgentOverview]


class Reloaded(TypedDict):
    """The answer to `reload`: keys of server.toml."""

    changed: list[str]
    restart: list[str]  # changed as well, but not in effect before a restart


def ask_status(state: StateFolder) -> RelayStatus | None:
    """Ask the relay that runs on `state`; None if none runs. Raises CommandFailed."""
    return cast("RelayStatus | None", ask(state.path / SOCKET, "status"))


def ask_overview(state: StateFolder) -> Overview | None:
    """Ask the relay that runs on `state`; None if none runs. Raises CommandFailed."""
    return cast("Overview | None", ask(state.path / SOCKET, "agents"))


def ask_to_reload(state: StateFolder) -> Reloaded | None:
    """Have the relay that runs on `state` read its file again; None if none runs.

    Raises CommandFailed.
    """
    return cast("Reloaded | None", ask(state.path / SOCKET, "reload"))
