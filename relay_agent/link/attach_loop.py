"""The agent attaches to its relay, and when the link is lost it attaches again, without end.

Nothing that the network or the relay does ends this loop, and it needs no wall clock: routers boot
in the wrong year.

    dialling ──welcome──▶ attached ──silence, or the network changed──▶ in doubt
       ▲                     │  ▲                                          │  │
       └──pause──link lost───┘  └──it speaks, or a rival link replaces it──┘  │
       └──────────────────────────────────────────────────────────dead────────┘

The session, which outlives links, is `session_holder`'s.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from protocol import __version__
from protocol.errors import DenialCode, LinkDenied, LinkLost, SessionLost
from protocol.process.address import HostPort, is_address
from protocol.process.link_history import LinkHistory
from protocol.process.logs import event
from protocol.transport.endpoint import Endpoint
from protocol.transport.link import Link
from protocol.wire.hello import MOVING, ROTATION, Hello, Welcome
from protocol.wire.identifiers import ID_SIZE, AgentKey, InstanceId
from relay_agent.identity.agent_keys import AgentKeys
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link.attach import SOFTWARE
from relay_agent.link.backoff import CAP_WITH_STREAMS, CAP_WITHOUT_STREAMS, Backoff
from relay_agent.link.relay_dialer import RelayDialer
from relay_agent.link.session_holder import SessionHolder
from relay_agent.link.status import AgentStatus
from relay_agent.services.publisher import Publisher

if TYPE_CHECKING:
    from relay_agent.config import AgentConfig
    from relay_agent.services.service import Service

log = logging.getLogger(__name__)

# Denials that last: how long to wait at least, in seconds. They also mean that the relay holds no
# session of this agent any more. After all others the backoff decides, and the session is kept.
RETRY: Final[dict[int, float]] = {
    # Only a person can change these. An attempt a minute finds out by itself that somebody has.
    DenialCode.VERSION: 60.0,
    DenialCode.UNKNOWN_AGENT: 60.0,
    DenialCode.TOKEN: 60.0,
    DenialCode.REVOKED: 60.0,
    # The other process may end any time, yet more attempts than this would only fill both logs.
    DenialCode.DUPLICATE: 30.0,
}
# A link that ends sooner than this was no success: if each brought the next one at once, an agent
# and a relay that break with each other for some reason would shake hands all day.
STEADY: Final = 1.0
# Between attempts to attach beside a link in doubt, which has seconds left: as often as a SYN is
# sent again.
RIVAL_PAUSE: Final = 1.0
# An attempt younger than this is left alone when the network changes: the change may be what it was
# begun for, and a network that flaps would otherwise never let one finish.
RECENT: Final = 2.0

_Attached: TypeAlias = tuple[Link, Welcome]
# What an attempt brought, and how long to wait at least before the next.
_Attempted: TypeAlias = tuple[_Attached | None, float]


class _NotNeeded(Exception):  # noqa: N818 - an outcome, not a defect
    """The link in doubt has spoken, so its rival is not wanted."""


class AttachLoop:
    def __init__(
        self,
        config: AgentConfig,
        services: Sequence[Service],
        dialer: RelayDialer,
        nursery: trio.Nursery,
    ) -> None:
        """What outlives a link runs in `nursery`."""
        self._dialer = dialer
        self._session = SessionHolder(
            config,
            services,
            nursery,
            on_suspicion=self._doubt_link,
            on_expiry=self._call_off_attempt,
        )
        self._instance = InstanceId(secrets.token_bytes(ID_SIZE))
        self._epoch = 0
        self._leaving = False
        self._backoff = Backoff(Random(secrets.randbits(64)))  # noqa: S311 - jitter, no secret
        self._attempt = trio.CancelScope()  # to attach
        self._attempt_began = -math.inf
        self._pause = trio.CancelScope()  # before the next attempt
        self._in_doubt = trio.Event()  # the link may be dead
        self._attempting_rival = False
        self._committed = False  # to the link that an attempt has made
        self._began = trio.current_time()
        self._lost_at = self._began  # when the last steady link was lost
        # For people and for the watch over routes.
        self._last_failure = ""  # the reason, as it was logged, for which the last attempt failed
        self._history = LinkHistory()
        self._name = ""  # that the relay has for this agent
        self._relay_address = self._link_address = ""  # of the last link
        self._addresses_changed = trio.Event()

    @property
    def relay(self) -> RelayIdentity:
        """The relay, with the keys and hosts that it has told of by now."""
        return self._dialer.relay

    @property
    def public_key(self) -> AgentKey:
        """The public half of this agent's newest key."""
        return self._dialer.agent_keys.public

    # Attempts

    async def run(self) -> None:
        """Attach, and attach again after each loss. Returns only after `say_goodbye`."""
        while not self._leaving:
            since = trio.current_time()
            attached, wait = await self._try_to_attach(self._hello)
            while attached is not None:
                attached, wait = await self._carry(*attached)
                since = trio.current_time()
            await self._wait(wait, since=since)

    async def _try_to_attach(self, hello: Callable[[], Hello]) -> _Attempted:
        """Make one attempt, anew whenever it is called off. Raises what `hello` does."""
        while True:
            self._attempt_began = trio.current_time()
            try:
                with trio.CancelScope() as self._attempt:
                    return await self._dialer.connect(hello), 0.0
            except LinkDenied as exc:
                wait = max(exc.retry_after, RETRY.get(exc.code, 0.0))
                self._tell_failure(logging.ERROR, "link-denied", str(exc), retry_in=wait)
                # A rival may be denied before it has committed: then the other link is still there.
                if exc.code in RETRY and not self._session.has_link:
                    self._session.end()
                return None, wait
            except LinkLost as exc:
                self._tell_failure(logging.WARNING, "dial-failed", str(exc))
                return None, 0.0

    def _tell_failure(self, level: int, name: str, reason: str, **more: object) -> None:
        """Log a failed attempt, on level debug while the reason stays the same.

        A relay may be away for days.
        """
        told = reason == self._last_failure
        self._last_failure = reason
        event(log, logging.DEBUG if told else level, name, reason=reason, **more)

    def _hello(self) -> Hello:
        """Called when a handshake commits to its link: the session gives up the link it has."""
        self._epoch += 1
        return Hello(
            instance=self._instance,
            epoch=self._epoch,
            software=SOFTWARE,
            features=(ROTATION, MOVING),
            limits=self._session.limits,
            resume=self._session.resume(),
        )

    async def _wait(self, least: float, *, since: float) -> None:
        """Pause before the next attempt: `least` from now, the backoff from the last one's begin.

        An attempt that stayed unanswered until its deadline was pause enough.
        """
        self._backoff.cap = CAP_WITH_STREAMS if self._session.has_streams else CAP_WITHOUT_STREAMS
        away = trio.current_time() - self._lost_at
        until = max(trio.current_time() + least, since + self._backoff.next_delay(away=away))
        with trio.CancelScope() as self._pause:
            await trio.sleep_until(until)

    def _call_off_attempt(self) -> None:
        """The session has expired, and an attempt under way may have asked for it."""
        self._attempt.cancel()

    # One link, and perhaps a rival

    async def _carry(self, link: Link, welcome: Welcome) -> _Attempted:
        """Carry the session over `link` until it is lost; return what its rival brought, if any.

        Make before break: while the link is in doubt, another is sought beside it.
        """
        self._session.stop_keeping()
        self._last_failure = ""
        since = trio.current_time()
        rivals: list[_Attempted] = []
        self._dialer.learn_hosts(welcome)
        if self._dialer.learn_successor(welcome):
            link.close()
            attempted = await self._try_to_attach(self._hello)
        else:
            await self._carry_with_rival(link, welcome, rivals)
            if trio.current_time() - since >= STEADY:
                self._backoff.reset()
                self._lost_at = trio.current_time()
            attempted = rivals[0] if rivals else (None, 0.0)
        if attempted[0] is None:
            self._session.keep()
        return attempted

    async def _carry_with_rival(
        self, link: Link, welcome: Welcome, rivals: list[_Attempted]
    ) -> None:
        """Carry the session until neither the link nor an attempt to replace it is left."""
        try:
            publisher = self._session.welcomed(welcome)
            self._tell_link_up(link, welcome)
            async with trio.open_nursery() as nursery:
                self._in_doubt, self._committed = trio.Event(), False
                nursery.start_soon(self._seek_rival, publisher.endpoint, rivals)
                await self._carry_alone(publisher, link, welcome.received)
                if not self._attempting_rival:
                    nursery.cancel_scope.cancel()
        except SessionLost as exc:  # before the link has carried anything
            event(log, logging.ERROR, "session-lost", reason=str(exc))
            self._session.end()
            link.close()

    def _tell_link_up(self, link: Link, welcome: Welcome) -> None:
        host, port = link.peername
        self._relay_address, self._name = host, welcome.name
        self._link_address = str(HostPort(host, port))
        self._history.came(trio.current_time(), resumed=welcome.resumed)
        self._addresses_changed.set()
        event(
            log,
            logging.INFO,
            "link-up",
            name=welcome.name,
            relay=self._link_address,
            resumed=welcome.resumed,
            software=welcome.software,
        )

    async def _carry_alone(self, publisher: Publisher, link: Link, received: int) -> None:
        """Carry the session until the link is lost, and close it at once.

        A rival needs the room that the old link takes in the uplink.
        """
        try:
            await publisher.endpoint.carry(link, received)
        except LinkLost as exc:
            event(log, logging.WARNING, "link-down", reason=str(exc))
            self._history.went(trio.current_time(), str(exc))
            if publisher.relay_gone:
                self._session.end()
        except SessionLost as exc:
            event(log, logging.ERROR, "session-lost", reason=str(exc))
            self._history.went(trio.current_time(), str(exc))
            self._session.end()
        finally:
            link.close()

    def _doubt_link(self) -> None:
        self._in_doubt.set()

    async def _seek_rival(self, endpoint: Endpoint, found: list[_Attempted]) -> None:
        """Once the link is in doubt, try to attach beside it until it speaks or is dead.

        An attempt for which the link was given up, or which outlived it, goes into `found`.
        """
        while True:
            await self._in_doubt.wait()
            self._in_doubt = trio.Event()
            while endpoint.in_doubt:
                event(log, logging.INFO, "link-in-doubt")
                self._attempting_rival = True
                try:
                    attempted = await self._try_to_attach(partial(self._commit, endpoint))
                except _NotNeeded:
                    event(log, logging.INFO, "link-alive")
                    break
                finally:
                    self._attempting_rival = False
                if self._committed or endpoint.link is None:
                    found.append(attempted)
                    return
                with trio.CancelScope() as self._pause:
                    await trio.sleep(RIVAL_PAUSE)

    def _commit(self, endpoint: Endpoint) -> Hello:
        """Called when a rival's handshake commits to its link. Raises _NotNeeded."""
        # There may be no link to go back to: dead, or given up by an attempt that was called off.
        if endpoint.link is not None and not endpoint.in_doubt:
            raise _NotNeeded
        self._committed = True
        return self._hello()

    # What the process is told

    def on_network_change(self) -> None:
        """The network may have changed: dial now, or ask the link for a sign of life.

        An attempt under way starts over: it may be waiting for an answer to an address that this
        machine no longer has.
        """
        event(log, logging.INFO, "network-changed")
        if trio.current_time() - self._attempt_began >= RECENT:
            self._attempt.cancel()
        self._pause.cancel()
        if self._session.endpoint is not None:
            self._session.endpoint.probe()

    def reconfigure(
        self, config: AgentConfig, services: Sequence[Service], hosts: Sequence[HostPort]
    ) -> None:
        """Go by these from now on; `hosts` are for the next attempt."""
        self._session.reconfigure(config, services)
        self._dialer.relay = replace(self._dialer.relay, hosts=hosts)

    def use_keys(self, agent_keys: AgentKeys) -> None:
        """Go on over another link, made with these keys."""
        self._dialer.agent_keys = agent_keys
        self._attempt.cancel()
        self._pause.cancel()
        if self._session.endpoint is not None:
            self._session.endpoint.drop_link("this agent has a new key")

    async def say_goodbye(self) -> None:
        """Make no further attempt; if there is a link, tell the relay that this process ends."""
        self._leaving = True
        await self._session.say_goodbye()

    # What others ask

    def addresses(self) -> list[str]:
        """The addresses of the relay to which the route from here matters."""
        relay = self._dialer.relay
        hosts = (*relay.hosts, *relay.further)
        literal = [host.host for host in hosts if is_address(host.host)]
        return [self._relay_address, *literal] if self._relay_address else literal

    async def wait_addresses(self) -> None:
        """Return once `addresses` may have become others."""
        await self._addresses_changed.wait()
        self._addresses_changed = trio.Event()

    def status(self) -> AgentStatus:
        """What `relay-agent status` shows, and the doctor asks for."""
        now = trio.current_time()
        endpoint = self._session.endpoint
        rtt = None if endpoint is None else endpoint.rtt
        return {
            "version": __version__,
            "age": round(now - self._began, 1),
            "name": self._name,
            "relay": [str(host) for host in (*self.relay.hosts, *self.relay.further)],
            "attached": self._session.has_link,
            "failure": self._last_failure,  # to attach; empty once there is a link
            "link": {
                "address": self._link_address,
                "rtt": None if rtt is None else round(rtt, 6),
                **self._history.facts(now),
            },
            "services": self._session.services(),
            "streams": [] if endpoint is None else endpoint.streams(),
        }
