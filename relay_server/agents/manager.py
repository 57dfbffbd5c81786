"""All agents: which link attaches, what happens to a session without one, what ends it."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from protocol import __version__
from protocol.errors import DenialCode, LinkLost, SessionLost
from protocol.process.address import HostPort
from protocol.process.logs import event
from protocol.process.state import StateError
from protocol.session.events import Event, PeerClosing, PublicationWithdrawn, PublishRequested
from protocol.session.liveness import LATE
from protocol.session.session import Session, SessionOptions
from protocol.session.side import Side
from protocol.session.snapshot import restore
from protocol.transport.endpoint import Endpoint
from protocol.transport.grace import wait_until
from protocol.transport.handshake import Arrival
from protocol.wire.body import Fields
from protocol.wire.frame import CloseCode
from protocol.wire.hello import INQUIRY, MOVING, ROTATION, Denial, Hello, Limits, Welcome
from protocol.wire.identifiers import ID_SIZE, AgentKey, SessionId
from relay_server.agents.agent_state import AgentState
from relay_server.agents.attach_policy import Decision
from relay_server.agents.context import RelayContext
from relay_server.agents.status import AgentOverview, AgentStatus
from relay_server.net.fault_isolation import contained
from relay_server.registry.registry import Refused

if TYPE_CHECKING:
    from relay_server.config import ServerConfig
    from relay_server.registry.registry import EnrolledAgent

log = logging.getLogger(__name__)

# How long an attached link may take to show life before another process with its key takes over:
# a round trip and one retransmission on any path that a shell is bearable on.
PROBE_SECONDS: Final = 2.0
# How long a duplicate should stay away: it cannot succeed before the other has gone.
DUPLICATE_RETRY: Final = 30.0
_REPLACED: Final = "the agent came over another link"
_RENEWED: Final = "the agent began anew"


class Agents:
    def __init__(self, context: RelayContext) -> None:
        self.context = context
        self._registry = context.registry
        self._keys = context.keys
        self._nursery = context.nursery
        self._present: dict[AgentKey, AgentState] = {}
        self._announced = context.registry.announced()

    # Arriving

    async def admit(self, arrival: Arrival, enrolled: EnrolledAgent, source: HostPort) -> None:
        """Attach an enrolled agent that came from `source`, or deny it.

        Runs until the link is lost or another one takes over.
        """
        hello = arrival.hello
        if INQUIRY in hello.features:
            await self._inform(arrival, enrolled)
            return
        agent = self._present.setdefault(
            arrival.agent_key, AgentState(self.context, arrival.agent_key, enrolled.name)
        )
        decision = agent.ownership.decide(hello)
        if decision is Decision.PROBE:
            decision = await self._probe(agent, hello)
            if self._present.get(arrival.agent_key) is not agent:
                # The key was revoked meanwhile, by us or for its successor: the agent hears of it
                # when it tries again.
                return
            if arrival.link.over:
                return  # it did not wait, and must not displace anybody
        match decision:
            case Decision.DUPLICATE:
                await self._deny_duplicate(agent, arrival, source)
            case Decision.STALE:
                reason = "a newer link of this agent came first"
                await self._deny(arrival, DenialCode.SUPERSEDED, reason)
            case _:
                agent.address = str(source)
                resume = decision is Decision.RESUME
                await self._attach(agent, arrival, enrolled, resume=resume)

    async def _inform(self, arrival: Arrival, enrolled: EnrolledAgent) -> None:
        """Answer an agent that only asks: an attached one with the same key must not notice."""
        nothing = SessionId(secrets.token_bytes(ID_SIZE))
        welcome = self._welcome(arrival, enrolled, nothing, resumed=False, received=0)
        with contextlib.suppress(LinkLost):
            await arrival.welcome(replace(welcome, clock=int(time.time())))

    def _welcome(
        self,
        arrival: Arrival,
        enrolled: EnrolledAgent,
        session: SessionId,
        *,
        resumed: bool,
        received: int,
        agent_key: AgentKey | None = None,
    ) -> Welcome:
        return Welcome(
            session=session,
            resumed=resumed,
            received=received,
            limits=_limits(self.context.config),
            name=enrolled.name,
            ports=enrolled.ports,
            features=(ROTATION, MOVING),
            software=f"ssh-relay {__version__}",
            successor=self._keys.successor(arrival.relay_key),
            agent_key=agent_key,
            hosts=tuple(map(str, self._announced)),
        )

    # From here on the new link owns the agent's state: nothing waits before the welcome is sent.

    def _take_successor(self, agent: AgentState, successor: AgentKey | None) -> AgentKey | None:
        """The agent's new key, if it has come with one; the old is worth nothing from then on.

        A link that may not attach does not get as far as this. The registry is written here and not
        in a thread, a few milliseconds once in months: so no agent comes, goes or is expelled
        between the decision and the change, nor between the change and what we know of it.
        """
        if successor is None or successor == agent.key:
            return None
        try:
            self._registry.succeed(agent.key, successor, time.time())
        except (Refused, StateError) as exc:
            # The old key stays good, and the agent comes with both again.
            event(log, logging.ERROR, "agent-key-kept", agent=agent.name, reason=str(exc))
            return None
        del self._present[agent.key]
        agent.key = successor
        self._present[successor] = agent
        event(log, logging.INFO, "agent-key-rotated", agent=agent.name, key=successor.hex())
        return successor

    async def _attach(
        self, agent: AgentState, arrival: Arrival, enrolled: EnrolledAgent, *, resume: bool
    ) -> None:
        hello, ownership = arrival.hello, agent.ownership
        agent_key = self._take_successor(agent, hello.successor)
        keeper = agent.take_over()
        endpoint, session = agent.endpoint, ownership.session
        if ownership.attached:
            agent.detached_now(_REPLACED if resume else _RENEWED)
        if resume and endpoint is not None and session is not None:
            endpoint.drop_link(_REPLACED)
        else:
            agent.reset_streams()
            resume, session = False, SessionId(secrets.token_bytes(ID_SIZE))
            endpoint = agent.endpoint = self._new_endpoint(agent, hello.limits)
            self._nursery.start_soon(agent.ports.close_orphans, endpoint)
        ownership.accept(hello, session)
        agent.goodbye = None
        agent.relay_key = arrival.relay_key
        agent.rotates = ROTATION in hello.features
        agent.announced_hosts = self._announced if MOVING in hello.features else None
        welcome = self._welcome(
            arrival,
            enrolled,
            session,
            resumed=resume,
            received=endpoint.session.received,
            agent_key=agent_key,
        )
        ended: LinkLost | SessionLost | None = None
        with keeper:
            try:
                await self._carry(agent, endpoint, arrival, welcome)
            except (LinkLost, SessionLost) as exc:
                ended = exc
            finally:
                arrival.link.close()
        if ended is not None and not keeper.cancel_called:
            self._on_link_down(agent, endpoint, ended)

    async def _carry(
        self, agent: AgentState, endpoint: Endpoint, arrival: Arrival, welcome: Welcome
    ) -> None:
        """Carry the session over the link; always raises, LinkLost or SessionLost."""
        hello = arrival.hello
        await arrival.welcome(welcome)
        agent.attached_now(resumed=welcome.resumed)
        self.context.counters.attached(resumed=welcome.resumed)
        event(
            log,
            logging.INFO,
            "link-up",
            agent=agent.name,
            address=agent.address,
            resumed=welcome.resumed,
            software=hello.software,
        )
        received = hello.resume.received if welcome.resumed and hello.resume else 0
        with contained(agent=agent.name):
            await endpoint.carry(arrival.link, received)
        raise SessionLost("a fault of the relay, which its log tells of")

    def _on_link_down(
        self, agent: AgentState, endpoint: Endpoint, why: LinkLost | SessionLost
    ) -> None:
        agent.detached_now(str(why))
        event(
            log,
            logging.INFO,
            "link-down",
            agent=agent.name,
            address=agent.address,
            reason=str(why),
            streams=endpoint.session.open_streams,
        )
        if isinstance(why, SessionLost) or agent.goodbye is CloseCode.GONE:
            agent.end_session()
        self._nursery.start_soon(self._wait_for_return, agent, agent.take_over())

    async def _wait_for_return(self, agent: AgentState, keeper: trio.CancelScope) -> None:
        """Keep the session for a while, the listeners longer. Cancelled when the agent is back."""
        gone = agent.since
        with keeper:
            if agent.endpoint is not None:
                streams = agent.endpoint.session.open_streams
                config = self.context.config
                keep = config.detached_keep if streams else config.detached_keep_idle
                await wait_until(gone + keep)
                if keeper.cancel_called:
                    return
                event(log, logging.INFO, "session-expired", agent=agent.name, streams=streams)
                agent.end_session()
            await trio.sleep_until(gone + self.context.config.listener_keep)
            if not keeper.cancel_called:
                self._forget(agent, "the agent stayed away")

    def take_back(self, agent: AgentState, session: Fields) -> Endpoint:
        """Go on with a session of another process of ours, once its agent is back.

        Raises SessionLost.
        """
        options = self._session_options()
        restored = restore(session, side=Side.RELAY, options=options)
        endpoint = agent.endpoint = self._endpoint_of(agent, restored)
        self._present[agent.key] = agent
        agent.detached_now("the relay restarted")
        self._nursery.start_soon(self._wait_for_return, agent, agent.take_over())
        return endpoint

    def _session_options(self) -> SessionOptions:
        context, config = self.context, self.context.config
        return SessionOptions(
            limits=_limits(config),
            window_limit=config.stream_window_max,
            replay_limit=config.replay,
            replay_cap=context.replay_cap,
            pool=context.pool,
        )

    def _endpoint_of(self, agent: AgentState, session: Session) -> Endpoint:
        return Endpoint(session, pool=self.context.pool, on_event=partial(self._on_event, agent))

    def _new_endpoint(self, agent: AgentState, peer: Limits) -> Endpoint:
        return self._endpoint_of(
            agent, Session(side=Side.RELAY, options=self._session_options(), peer=peer)
        )

    # Another process with the same key

    async def _probe(self, agent: AgentState, hello: Hello) -> Decision:
        """Give the attached agent a moment to show life. One question a key; the newest wins."""
        if agent.newcomer is not None:
            agent.newcomer.cancel()
        alive = False
        with trio.CancelScope() as scope:
            agent.newcomer = scope
            alive = await self._shows_life(agent)
        if scope.cancel_called:
            return Decision.STALE
        agent.newcomer = None
        if alive:
            return Decision.DUPLICATE
        # The old one may have gone meanwhile.
        again = agent.ownership.decide(hello)
        return Decision.RENEW if again is Decision.PROBE else again

    async def _shows_life(self, agent: AgentState) -> bool:
        """Whether a byte comes from the attached agent in time, or a new link of whomever."""
        while True:
            endpoint, link = agent.endpoint, agent.link
            asked = trio.current_time()
            if endpoint is not None and await endpoint.shows_life(PROBE_SECONDS):
                return True
            if agent.link is not link and agent.link is not None:
                return True
            if trio.current_time() - asked <= PROBE_SECONDS + LATE:
                return False
            # We did not run (stopped, suspended), so the silence may be our own.

    async def _deny_duplicate(self, agent: AgentState, arrival: Arrival, source: HostPort) -> None:
        event(
            log,
            logging.WARNING,
            "agent-duplicate",
            agent=agent.name,
            address=source.host,
            attached=agent.address,
            instance=arrival.hello.instance.hex(),
        )
        reason = f"another process with the key of {agent.name} is attached"
        await self._deny(arrival, DenialCode.DUPLICATE, reason, retry_after=DUPLICATE_RETRY)

    async def _deny(
        self, arrival: Arrival, code: DenialCode, reason: str, *, retry_after: float = 0.0
    ) -> None:
        self.context.counters.denied[code] += 1
        # A link that is gone meanwhile needs no answer.
        with contextlib.suppress(LinkLost):
            await arrival.deny(Denial(code=code, reason=reason, retry_after=retry_after))

    # What an agent says

    def _on_event(self, agent: AgentState, happened: Event) -> None:
        if isinstance(happened, PublishRequested):
            agent.ports.publish(happened.publish)
        elif isinstance(happened, PublicationWithdrawn):
            agent.ports.withdraw(happened.publication)
        elif isinstance(happened, PeerClosing):
            agent.goodbye = happened.code
            if happened.code is CloseCode.GONE and agent.endpoint is not None:
                agent.endpoint.drop_link("the agent said goodbye")

    # Changes from outside

    def refresh(self) -> None:
        """The registry changed: put into effect what concerns the agents that are here.

        Raises StateError if the registry cannot be read.
        """
        self._announced = self._registry.announced()
        # One query for all: every link waits meanwhile.
        by_key = {one.public_key: one for one in self._registry.agents()}
        for agent in list(self._present.values()):
            enrolled = by_key.get(agent.key)
            if enrolled is None:
                event(log, logging.WARNING, "agent-revoked", agent=agent.name)
                agent.expel()
                self._forget(agent, "the agent is revoked")
            else:
                agent.ports.keep_granted(enrolled)
                if agent.announced_hosts not in (None, self._announced):
                    _renew_link(agent, "the relay is to be found elsewhere as well")

    def renew_links(self) -> None:
        """Our key is another one: have those who know a former one come again, and be told."""
        for agent in list(self._present.values()):
            if agent.rotates and self._keys.successor(agent.relay_key) is not None:
                _renew_link(agent, "the relay's key was rotated")

    def _forget(self, agent: AgentState, reason: str) -> None:
        agent.ports.close_all(reason)
        del self._present[agent.key]

    def say_goodbye(self, code: CloseCode) -> None:
        """The relay is going away: tell every agent, so that none waits for a timeout."""
        for agent in self._present.values():
            if agent.endpoint is not None and agent.ownership.attached:
                agent.endpoint.session.close_link(code)
                agent.endpoint.flush()

    @property
    def present(self) -> list[AgentState]:
        """Agents that attached since the start and are not forgotten, with or without a session."""
        return list(self._present.values())

    def overview(self) -> list[AgentOverview]:
        """What `relay-server agents` shows of the agents that are here."""
        now = trio.current_time()
        return [
            {
                "name": agent.name,
                "attached": agent.ownership.attached,
                "address": agent.address,
                "since": round(now - agent.since, 1),  # seconds ago
                "streams": agent.endpoint.session.open_streams if agent.endpoint else 0,
                "ports": sorted(port for port, one in agent.ports.listeners.items() if one.open),
                "refused": dict(agent.refused),
                "services": [
                    {"service": line.service, "port": port, "refused": dict(line.refused)}
                    for port, line in sorted(agent.lines.items())
                ],
                # Whether it will follow by itself, and soon.
                "following": agent.rotates and agent.ownership.attached,
                # Whether it knows where else we may be; None if it does not listen.
                "told": None
                if agent.announced_hosts is None
                else agent.announced_hosts == self._announced,
            }
            for agent in self._present.values()
        ]

    def status(self) -> list[AgentStatus]:
        """What `relay-server status` shows: all of it, for those that are here."""
        return [agent.status() for agent in self._present.values()]


def _limits(config: ServerConfig) -> Limits:
    return Limits(
        streams=config.max_streams,
        stream_window=config.stream_window,
        session_window=config.session_window,
    )


def _renew_link(agent: AgentState, reason: str) -> None:
    """Have the agent come again, to be told; its session goes on over the next link."""
    if agent.endpoint is not None and agent.ownership.attached:
        agent.endpoint.session.close_link(CloseCode.RESTARTING)
        agent.endpoint.flush()
        agent.endpoint.drop_link(reason)
