"""The state of one agent, by its key, for as long as this process runs.

    arrive ──attach policy──▶ attached ──link lost──▶ detached ──in time──▶ attached …
                                  │                       │
                               goodbye                 too long, revoked, taken over
                                  └───────────────────────┴──▶ session over, sockets reset

Listeners outlive the session: a listener belongs to the key and the port.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

import trio

from protocol.process.address import HostPort
from protocol.process.control.schema import LinkStatus
from protocol.session.snapshot import export
from protocol.transport.endpoint import Endpoint
from protocol.wire.body import Fields
from protocol.wire.frame import CloseCode, Publish
from protocol.wire.identifiers import RelayKey, SessionId
from relay_server.agents.context import RelayContext
from relay_server.agents.public_ports import PublicPorts
from relay_server.agents.saved import SavedAgent, SavedVisit, encode_visit
from relay_server.agents.status import AgentStatus, ServiceStatus
from relay_server.agents.visited_agent import VisitedAgent

_NO_KEY: Final = RelayKey(b"")


@dataclass(slots=True, eq=False)
class AgentState(VisitedAgent):
    ports: PublicPorts = field(init=False)
    keeper: trio.CancelScope | None = None  # of the task that carries the link, or waits for one
    newcomer: trio.CancelScope | None = None  # another process, waiting for its probe
    address: str = ""  # where the agent is, or was last
    relay_key: RelayKey = _NO_KEY  # of ours, under which it came last
    rotates: bool = False  # whether it understands that we have another one
    # Further addresses of the relay that it was sent; None if it does not support `moving`.
    announced_hosts: tuple[HostPort, ...] | None = None
    goodbye: CloseCode | None = None

    def __post_init__(self) -> None:
        self.ports = PublicPorts(self)

    def take_over(self) -> trio.CancelScope:
        """The scope for the task that keeps the session from now on; the one before is cancelled.

        A task woken in the turn in which it is cancelled runs once more: look at `cancel_called`
        before touching the state.
        """
        if self.keeper is not None:
            self.keeper.cancel()
        self.keeper = trio.CancelScope()
        return self.keeper

    def expel(self) -> None:
        """End the session, and whatever is under way to carry one."""
        for scope in (self.keeper, self.newcomer):
            if scope is not None:
                scope.cancel()
        self.end_session()

    def save(
        self,
        endpoint: Endpoint,
        session_id: SessionId,
        visits: Iterable[SavedVisit[dict[str, object]]],
    ) -> SavedAgent[dict[str, object]]:
        """The session without a link, and what belongs to it."""
        listeners = self.ports.listeners
        return SavedAgent(
            key=self.key,
            address=self.address,
            relay_key=self.relay_key,
            rotates=self.rotates,
            instance=self.ownership.instance,
            epoch=self.ownership.epoch,
            session_id=session_id,
            displaced=tuple(self.ownership.displaced),
            session=export(endpoint.session),
            publications=tuple(
                Publish(publication=publication, service=listeners[port].service, port=port)
                for port, publication in self.publications.items()
            ),
            visits=tuple(map(encode_visit, visits)),
        )

    @classmethod
    def restored(cls, context: RelayContext, name: str, saved: SavedAgent[Fields]) -> AgentState:
        """The agent as it was saved, but for its session, its ports and its visitors."""
        agent = cls(context, saved.key, name)
        agent.address, agent.relay_key = saved.address, saved.relay_key
        agent.rotates = saved.rotates
        ownership = agent.ownership
        ownership.instance, ownership.epoch = saved.instance, saved.epoch
        ownership.session = saved.session_id
        ownership.displaced.extend(saved.displaced)
        return agent

    def status(self) -> AgentStatus:
        """All that there is to tell about it now, for JSON."""
        endpoint = self.endpoint
        rtt = None if endpoint is None else endpoint.rtt
        link: LinkStatus = {
            "address": self.address,
            "rtt": None if rtt is None else round(rtt, 6),
            **self.history.facts(trio.current_time()),
        }
        return {
            "name": self.name,
            "attached": self.ownership.attached,
            "link": link,
            "services": [self._service(port) for port in sorted(self.ports.listeners | self.lines)],
            "streams": [] if endpoint is None else endpoint.streams(),
            "waiting": self.waiting_unread,
        }

    def _service(self, port: int) -> ServiceStatus:
        """What there is on a port, or was."""
        listener, line = self.ports.listeners.get(port), self.lines.get(port)
        state: Literal["open", "busy", "closed"] = "closed"
        if listener is not None:
            state = "open" if listener.open else "busy"
        return {
            "service": listener.service if listener else line.service if line else "",
            "port": port,
            "state": state,
            "published": port in self.publications,
            "refused": dict(line.refused) if line else {},
        }
