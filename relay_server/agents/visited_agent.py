"""An agent as its public ports and its visitors see it: its session, and who visits or waits.

The imports run one way: `agent_state` → `public_ports` → `visits` → here.
"""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import trio

from protocol.process.link_history import LinkHistory
from protocol.transport.endpoint import Endpoint
from protocol.transport.link import Link
from protocol.wire.identifiers import AgentKey
from relay_server.agents.attach_policy import Ownership
from relay_server.agents.context import RelayContext
from relay_server.agents.saved import SavedVisit
from relay_server.guard.waiting_line import WaitingLine


class OpenVisit(Protocol):
    """A visitor whose socket is open. It is in `visits` for as long."""

    sock: socket.socket

    def save(self) -> SavedVisit[dict[str, object]] | None:
        """For another process; None if the visit is about to end. No task may run after this."""


@dataclass(slots=True, eq=False)
class VisitedAgent:
    context: RelayContext
    key: AgentKey  # the agent's; another one once a successor was taken
    name: str
    ownership: Ownership = field(default_factory=Ownership)
    endpoint: Endpoint | None = None  # the session, attached or not
    publications: dict[int, int] = field(default_factory=dict)  # of the session, by port
    history: LinkHistory = field(default_factory=LinkHistory)  # on trio's clock
    visits: set[OpenVisit] = field(default_factory=set)
    waiting_unread: int = 0  # visitors that wait for the agent
    lines: dict[int, WaitingLine] = field(default_factory=dict)  # by port; they outlive listeners
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def refused(self) -> Counter[str]:
        """Visitors of all services, by reason."""
        return sum((line.refused for line in self.lines.values()), Counter())

    @property
    def link(self) -> Link | None:
        return None if self.endpoint is None else self.endpoint.link

    @property
    def since(self) -> float:
        """When it attached or detached."""
        return self.history.since

    def ready(self, port: int) -> Endpoint | None:
        """The session that a visitor on `port` can be passed on to now."""
        return self.endpoint if self.ownership.attached and port in self.publications else None

    async def wait_change(self) -> None:
        """Until it may be worth asking `ready` again."""
        await self._changed.wait()

    def notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def attached_now(self, *, resumed: bool = False) -> None:
        self.ownership.attached = True
        self.history.came(trio.current_time(), resumed=resumed)
        self.notify()

    def detached_now(self, why: str = "") -> None:
        self.ownership.attached = False
        self.history.went(trio.current_time(), why)

    def end_session(self) -> None:
        """The session is over, and no process holds it."""
        self.reset_streams()
        self.ownership.end()

    def reset_streams(self) -> None:
        """Every socket of the session is reset. Listeners stay open, but publish nothing."""
        self.ownership.attached = False
        self.publications.clear()
        if self.endpoint is not None:
            endpoint, self.endpoint = self.endpoint, None
            endpoint.lose()
