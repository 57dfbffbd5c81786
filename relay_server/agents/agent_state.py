"""The state of one agent, by its key, for as long as this process runs.

    arrive ──attach policy──▶ attached ──link lost──▶ detached ──in time──▶ attached …
                                  │                       │
                               goodbye                 too long, revoked, taken over
                                  └───────────────────────┴──▶ session over, sockets reset

Listeners outlive the session: a listener belongs to the key and the port.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from protocol.process.address import HostPort
from protocol.process.link_history import LinkHistory
from protocol.session.snapshot import export
from protocol.transport.endpoint import Endpoint
from protocol.transport.link import Link
from protocol.wire.body import Fields
from protocol.wire.frame import CloseCode, Publish
from relay_server.agents.attach_policy import Ownership
from relay_server.agents.listener import Listener
from relay_server.agents.saved import SavedAgent, SavedVisit, encode_visit
from relay_server.guard.waiting_line import WaitingLine

if TYPE_CHECKING:
    from relay_server.agents.visits import Visit


@dataclass(slots=True, eq=False)
class AgentState:
    key: bytes  # the agent's; another one once a successor was taken
    name: str
    ownership: Ownership = field(default_factory=Ownership)
    endpoint: Endpoint | None = None  # the session, attached or not
    listeners: dict[int, Listener] = field(default_factory=dict)  # by port
    keeper: trio.CancelScope | None = None  # of the task that carries the link, or waits for one
    newcomer: trio.CancelScope | None = None  # another process, waiting for its probe
    address: str = ""  # where the agent is, or was last
    relay_key: bytes = b""  # of ours, under which it came last
    rotates: bool = False  # whether it understands that we have another one
    # Further addresses of the relay that it was sent; None if it does not support `moving`.
    announced_hosts: tuple[HostPort, ...] | None = None
    history: LinkHistory = field(default_factory=LinkHistory)  # on trio's clock
    goodbye: CloseCode | None = None
    visits: set[Visit] = field(default_factory=set)
    waiting_unread: int = 0  # visitors that wait for the agent
    lines: dict[int, WaitingLine] = field(
        default_factory=dict
    )  # by port; they outlive its listener
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def refused(self) -> Counter[str]:
        """Visitors of all services, by reason."""
        return sum((line.refused for line in self.lines.values()), Counter())

    @property
    def link(self) -> Link | None:
        return None if self.endpoint is None else self.endpoint.link

    def ready(self, listener: Listener) -> Endpoint | None:
        """The session that a visitor on `listener` can be passed on to now."""
        return self.endpoint if self.ownership.attached and listener.publication else None

    async def wait_change(self) -> None:
        """Until it may be worth asking `ready` again."""
        await self._changed.wait()

    def notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def take_over(self) -> trio.CancelScope:
        """The scope for the task that keeps the session from now on; the one before is cancelled.

        A task woken in the turn in which it is cancelled runs once more: look at `cancel_called`
        before touching its state.
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

    @property
    def since(self) -> float:
        """When it attached or detached."""
        return self.history.since

    def attached_now(self, *, resumed: bool = False) -> None:
        self.ownership.attached = True
        self.history.came(trio.current_time(), resumed=resumed)
        self.notify()

    def detached_now(self, why: str = "") -> None:
        self.ownership.attached = False
        self.history.went(trio.current_time(), why)

    def end_session(self) -> None:
        """The session is over and nobody's."""
        self.reset_streams()
        self.ownership.end()

    def reset_streams(self) -> None:
        """Every socket of the session is reset; the listeners stay, serving nobody."""
        self.ownership.attached = False
        if self.endpoint is not None:
            endpoint, self.endpoint = self.endpoint, None
            endpoint.lose()
        for listener in self.listeners.values():
            listener.publication = 0

    def save(
        self, endpoint: Endpoint, session_id: bytes, visits: Iterable[SavedVisit[dict[str, object]]]
    ) -> SavedAgent[dict[str, object]]:
        """The session without a link, and what belongs to it."""
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
                Publish(publication=one.publication, service=one.service, port=one.port)
                for one in self.listeners.values()
                if one.publication
            ),
            visits=tuple(map(encode_visit, visits)),
        )

    @classmethod
    def restored(cls, name: str, saved: SavedAgent[Fields]) -> AgentState:
        """The agent as it was saved, but for its session, its ports and its visitors."""
        agent = cls(saved.key, name)
        agent.address, agent.relay_key = saved.address, saved.relay_key
        agent.rotates = saved.rotates
        ownership = agent.ownership
        ownership.instance, ownership.epoch = saved.instance, saved.epoch
        ownership.session = saved.session_id
        ownership.displaced.extend(saved.displaced)
        return agent

    def status(self) -> dict[str, object]:
        """All that there is to tell about it now, for JSON."""
        endpoint = self.endpoint
        rtt = None if endpoint is None else endpoint.rtt
        link = {
            "address": self.address,
            "rtt": None if rtt is None else round(rtt, 6),
            **self.history.facts(trio.current_time()),
        }
        return {
            "name": self.name,
            "attached": self.ownership.attached,
            "link": link,
            "services": [self._service(port) for port in sorted(self.listeners | self.lines)],
            "streams": [] if endpoint is None else endpoint.streams(),
            "waiting": self.waiting_unread,
        }

    def _service(self, port: int) -> dict[str, object]:
        """What there is on a port, or was."""
        listener, line = self.listeners.get(port), self.lines.get(port)
        state = "closed"
        if listener is not None:
            state = "open" if listener.open else "busy"
        return {
            "service": listener.service if listener else line.service if line else "",
            "port": port,
            "state": state,
            "published": listener is not None and bool(listener.publication),
            "refused": dict(line.refused) if line else {},
        }
