"""The agents that are here: who attaches, what becomes of their sessions, who is expelled."""

from __future__ import annotations

import logging
import secrets
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from protocol import __version__
from protocol.buffers import BufferPool
from protocol.errors import DenialCode, LinkLost, SessionLost
from protocol.events import Event, PeerClosing, PublicationWithdrawn, PublishRequested
from protocol.frame import CloseCode
from protocol.hello import ID_SIZE, Denial, Hello, Limits, Welcome
from protocol.process.logs import event
from protocol.replay import ReplayCap
from protocol.session import Session, SessionOptions
from protocol.transport.endpoint import Endpoint
from protocol.transport.handshake import Arrival
from relay_server.ports import Ports
from relay_server.presence import Presence
from relay_server.takeover import Decision

if TYPE_CHECKING:
    from relay_server.config import ServerConfig
    from relay_server.registry import Agent, Registry

log = logging.getLogger(__name__)

# How long an attached link may take to show life before another process with its key takes over:
# a round trip and one retransmission on any path that a shell is bearable on.
PROBE_SECONDS: Final = 2.0
# How long a duplicate should stay away: it cannot succeed before the other has gone.
DUPLICATE_RETRY: Final = 30.0


class Agents:
    def __init__(self, config: ServerConfig, registry: Registry, nursery: trio.Nursery) -> None:
        self._config = config
        self._registry = registry
        self._nursery = nursery
        self._ports = Ports(config, registry, nursery)
        self._present: dict[bytes, Presence] = {}
        self._pool = BufferPool()
        self._cap = ReplayCap(config.replay_total)
        self._limits = Limits(
            streams=config.max_streams,
            stream_window=config.stream_window,
            session_window=config.session_window,
        )

    # Arriving

    async def admit(self, arrival: Arrival, agent: Agent) -> None:
        """Attach an enrolled agent, or deny it.

        Runs until the link is lost and the session's time is up, or another link takes over.
        Raises LinkLost if the answer cannot be sent.
        """
        hello = arrival.hello
        presence = self._present.setdefault(
            arrival.agent_key, Presence(arrival.agent_key, agent.name)
        )
        decision = presence.tenure.decide(hello)
        if decision is Decision.PROBE:
            decision = await self._probe(presence, hello)
        if decision is Decision.DUPLICATE:
            await self._deny_duplicate(presence, arrival)
        elif decision is Decision.STALE:
            reason = "a newer link of this agent came first"
            await arrival.deny(Denial(code=DenialCode.SUPERSEDED, reason=reason, retry_after=0.0))
        else:
            if presence.attempt is not None:
                presence.attempt.cancel()
            with trio.CancelScope() as presence.attempt:
                await self._attach(presence, arrival, agent, resume=decision is Decision.RESUME)

    async def _attach(
        self, presence: Presence, arrival: Arrival, agent: Agent, *, resume: bool
    ) -> None:
        hello, tenure = arrival.hello, presence.tenure
        session = tenure.session
        if resume and presence.endpoint is not None and session is not None:
            endpoint = presence.endpoint
            endpoint.drop_link("the agent came over another link")
        else:
            presence.reset_streams()
            endpoint = presence.endpoint = self._new_endpoint(presence, hello.limits)
            session = secrets.token_bytes(ID_SIZE)
        tenure.accept(hello, session)
        presence.goodbye = None
        host, port = arrival.link.peername
        presence.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        welcome = Welcome(
            session=session,
            resumed=resume,
            received=endpoint.session.received,
            limits=self._limits,
            name=agent.name,
            ports=agent.ports,
            features=(),
            software=f"ssh-relay {__version__}",
        )
        over = await self._carry(presence, endpoint, arrival, welcome)
        if not over:
            await self._wait_for_return(presence, endpoint)

    async def _carry(
        self, presence: Presence, endpoint: Endpoint, arrival: Arrival, welcome: Welcome
    ) -> bool:
        """Carry the session over the link until that ends; True if the session ends with it."""
        hello = arrival.hello
        received = hello.resume.received if welcome.resumed and hello.resume else 0
        about = {"agent": presence.name, "address": presence.address}
        lost = False
        try:
            await arrival.welcome(welcome)
            presence.attached_now()
            event(
                log,
                logging.INFO,
                "link-up",
                **about,
                resumed=welcome.resumed,
                software=hello.software,
            )
            if not welcome.resumed:
                self._nursery.start_soon(self._ports.close_orphans, presence, endpoint)
            await endpoint.carry(arrival.link, received)
        except (LinkLost, SessionLost) as exc:
            lost, reason = isinstance(exc, SessionLost), str(exc)
        finally:
            arrival.link.close()
        presence.detached_now()
        streams = endpoint.session.open_streams
        event(log, logging.INFO, "link-down", **about, reason=reason, streams=streams)
        if lost or presence.goodbye is CloseCode.GONE:
            presence.end_session()
            return True
        return False

    async def _wait_for_return(self, presence: Presence, endpoint: Endpoint) -> None:
        """Keep the session for a while, the listeners longer. Cancelled when the agent is back."""
        streams = endpoint.session.open_streams
        keep = self._config.detached_keep if streams else self._config.detached_keep_idle
        await trio.sleep(keep)
        event(log, logging.INFO, "session-expired", agent=presence.name, streams=streams)
        presence.end_session()
        await trio.sleep(self._config.listener_keep)
        self._forget(presence, "the agent stayed away")

    def _new_endpoint(self, presence: Presence, peer: Limits) -> Endpoint:
        options = SessionOptions(
            limits=self._limits,
            window_limit=self._config.stream_window_max,
            replay_limit=self._config.replay,
            replay_cap=self._cap,
            pool=self._pool,
        )
        session = Session(relay=True, options=options, peer=peer)
        return Endpoint(session, pool=self._pool, on_event=partial(self._on_event, presence))

    # Another process with the same key

    async def _probe(self, presence: Presence, hello: Hello) -> Decision:
        """Give the attached link a moment to show life. One question a key; the newest wins."""
        if presence.newcomer is not None:
            presence.newcomer.cancel()
        alive = False
        with trio.CancelScope() as presence.newcomer:
            if presence.endpoint is not None:
                alive = await presence.endpoint.shows_life(PROBE_SECONDS)
            presence.newcomer = None
            if alive:
                return Decision.DUPLICATE
            # The old one may have gone meanwhile, or a third may have come.
            again = presence.tenure.decide(hello)
            return Decision.RENEW if again is Decision.PROBE else again
        return Decision.STALE

    async def _deny_duplicate(self, presence: Presence, arrival: Arrival) -> None:
        event(
            log,
            logging.WARNING,
            "agent-duplicate",
            agent=presence.name,
            address=arrival.link.peername[0],
            attached=presence.address,
            instance=arrival.hello.instance.hex(),
        )
        reason = f"another process with the key of {presence.name} is attached"
        await arrival.deny(
            Denial(code=DenialCode.DUPLICATE, reason=reason, retry_after=DUPLICATE_RETRY)
        )

    # What an agent says

    def _on_event(self, presence: Presence, happened: Event) -> None:
        if isinstance(happened, PublishRequested):
            self._ports.publish(presence, happened.publish)
        elif isinstance(happened, PublicationWithdrawn):
            self._ports.withdraw(presence, happened.publication)
        elif isinstance(happened, PeerClosing):
            presence.goodbye = happened.code

    # Changes from outside

    def refresh(self) -> None:
        """The registry changed: put into effect what concerns the agents that are here."""
        for presence in list(self._present.values()):
            agent = self._registry.agent_by_key(presence.key)
            if agent is None:
                event(log, logging.WARNING, "agent-revoked", agent=presence.name)
                self._expel(presence)
                continue
            for listener in list(presence.listeners.values()):
                if listener.port not in agent.ports:
                    self._ports.close(presence, listener, "no longer granted")

    def _expel(self, presence: Presence) -> None:
        for scope in (presence.attempt, presence.newcomer, *presence.held):
            if scope is not None:
                scope.cancel()
        presence.end_session()
        self._forget(presence, "the agent is revoked")

    def _forget(self, presence: Presence, reason: str) -> None:
        for listener in list(presence.listeners.values()):
            self._ports.close(presence, listener, reason)
        del self._present[presence.key]

    def say_goodbye(self) -> None:
        """The relay is going away: tell every agent, so that none waits for a timeout."""
        for presence in self._present.values():
            if presence.endpoint is not None and presence.tenure.attached:
                presence.endpoint.session.close_link(CloseCode.RESTARTING)
                presence.endpoint.flush()

    def overview(self) -> list[dict[str, object]]:
        """What `relay-server agents` shows of the agents that are here."""
        now = trio.current_time()
        return [
            {
                "name": presence.name,
                "attached": presence.tenure.attached,
                "address": presence.address,
                "since": round(now - presence.since, 1),  # seconds ago
                "streams": presence.endpoint.session.open_streams if presence.endpoint else 0,
                "ports": sorted(port for port, one in presence.listeners.items() if one.open),
            }
            for presence in self._present.values()
        ]
