"""The agent's life: attach, carry, and when the link is lost, attach again. Without end.

Nothing that the network or the relay does ends this loop, and it needs no wall clock: routers boot
in the wrong year. A session goes on over as many links as it takes; when the relay no longer has
it, its sockets are reset and the next begins.

    dialling ──welcome──▶ attached ──silence, or the network changed──▶ in doubt
       ▲                     │  ▲                                          │  │
       └──pause──link lost───┘  └──it speaks, or a rival link replaces it──┘  │
       └──────────────────────────────────────────────────────────dead────────┘
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
from protocol.session.replay import ReplayCap
from protocol.session.session import Session
from protocol.transport.endpoint import Endpoint
from protocol.transport.grace import wait_until
from protocol.transport.link import Link
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import CloseCode
from protocol.wire.hello import ID_SIZE, MOVING, ROTATION, Hello, Resume, Welcome
from relay_agent.identity.agent_keys import rotate
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link.attach import SOFTWARE
from relay_agent.link.backoff import CAP_WITH_STREAMS, CAP_WITHOUT_STREAMS, Backoff
from relay_agent.link.relay_dialer import RelayDialer
from relay_agent.services.publisher import Publisher

if TYPE_CHECKING:
    from protocol.process.state import StateFolder
    from relay_agent.config import AgentConfig
    from relay_agent.services.service import Service

log = logging.getLogger(__name__)

# Denials that last: how long to wait at least, in seconds. They also mean that the relay holds no
# session of ours any more. All others are the backoff's, and the session is kept.
RETRY: Final[dict[int, float]] = {
    # Only a person can change these; asking now and then heals by itself once they have.
    DenialCode.VERSION: 60.0,
    DenialCode.UNKNOWN_AGENT: 60.0,
    DenialCode.TOKEN: 60.0,
    DenialCode.REVOKED: 60.0,
    # The other process may go away any time, yet trying more often would only fill both logs.
    DenialCode.DUPLICATE: 30.0,
}
# A link that ends sooner than this was no success: if each brought the next one at once, an agent
# and a relay that break with each other for some reason would shake hands all day.
STEADY: Final = 1.0
# Between attempts to attach beside a link in doubt, which has seconds left: as often as a SYN is
# sent again.
RIVAL_PAUSE: Final = 1.0
# An attempt younger than this is left alone when the network changes: the change may be what it was
# begun for, and a network that flaps would else never let one finish.
YOUNG: Final = 2.0
# For the goodbye to arrive: three round trips of a bad path, or one lost segment. Without it the
# relay would keep the session, and its visitors, for a return that is not planned.
DRAIN: Final = 2.0


_Attached: TypeAlias = tuple[Link, Welcome]
# What an attempt brought, and how long to wait at least before the next.
_Outcome: TypeAlias = tuple[_Attached | None, float]


class _Needless(Exception):  # noqa: N818 - an outcome, not a defect
    """The link in doubt has spoken, so its rival is not wanted."""


class Agent:
    def __init__(
        self,
        config: AgentConfig,
        services: Sequence[Service],
        keys: RelayDialer,
        nursery: trio.Nursery,
    ) -> None:
        self._config = config
        self._services = services
        self._keys = keys
        self._nursery = nursery
        self._instance = secrets.token_bytes(ID_SIZE)
        self._epoch = 0
        self._session: bytes | None = None  # the id of the session that `_serving` holds
        self._serving: Publisher | None = None
        self._leaving = False
        self._last_failure = ""  # to attach, as it was told
        self._history = LinkHistory()
        self._began = trio.current_time()
        self._name = ""  # what the relay calls us
        self._attempt_began = -math.inf
        self._lost_at = trio.current_time()  # the last steady link, or begun without one
        self._attempting_rival = False
        self._pool = BufferPool()
        self._cap = ReplayCap(config.replay)
        self._backoff = Backoff(Random(secrets.randbits(64)))  # noqa: S311 - jitter, no secret
        self._attempt = trio.CancelScope()  # to attach
        self._pause = trio.CancelScope()  # before the next attempt
        self._keeping = trio.CancelScope()  # of a session without a link
        self._doubt = trio.Event()  # the link may be dead
        self._committed = False  # to the link that an attempt made
        self._relay_address = self._link_address = ""  # where the last link led
        self._ways_changed = trio.Event()

    @property
    def relay(self) -> RelayIdentity:
        """As we know it by now."""
        return self._keys.relay

    @property
    def public_key(self) -> bytes:
        """The newest of our own."""
        return self._keys.own.newest.public

    def reconfigure(
        self, config: AgentConfig, services: Sequence[Service], hosts: Sequence[HostPort]
    ) -> None:
        self._config, self._services = config, services
        self._keys.relay = replace(self._keys.relay, hosts=hosts)
        self._cap.limit = config.replay
        if self._serving is not None:
            self._serving.change(services)

    async def stay_attached(self) -> None:
        """Returns only once we are leaving."""
        while not self._leaving:
            since = trio.current_time()
            attached, wait = await self._try_to_attach(self._hello)
            while attached is not None:
                attached, wait = await self._carry(*attached)
                since = trio.current_time()
            await self._wait(wait, since=since)

    async def _try_to_attach(self, hello: Callable[[], Hello]) -> _Outcome:
        """One attempt. Raises what `hello` does."""
        while True:
            self._attempt_began = trio.current_time()
            try:
                with trio.CancelScope() as self._attempt:
                    return await self._keys.attach(hello), 0.0
            except LinkDenied as exc:
                wait = max(exc.retry_after, RETRY.get(exc.code, 0.0))
                self._tell_failure(logging.ERROR, "link-denied", str(exc), retry_in=wait)
                if exc.code in RETRY and not self._has_link():
                    self._end_session()
                return None, wait
            except LinkLost as exc:
                self._tell_failure(logging.WARNING, "dial-failed", str(exc))
                return None, 0.0
            # Called off, to start over from where we are now.

    def _tell_failure(self, level: int, name: str, reason: str, **more: object) -> None:
        """A relay may be away for days: the same reason is told once, until something changes."""
        told = reason == self._last_failure
        self._last_failure = reason
        event(log, logging.DEBUG if told else level, name, reason=reason, **more)

    def _hello(self) -> Hello:
        """Made when the handshake commits to its link: from here on the old one is silent."""
        resume = None
        if self._serving is not None and self._session is not None:
            endpoint = self._serving.endpoint
            endpoint.drop_link("another link takes over")
            resume = Resume(session=self._session, received=endpoint.session.received)
        self._epoch += 1
        return Hello(
            instance=self._instance,
            epoch=self._epoch,
            software=SOFTWARE,
            features=(ROTATION, MOVING),
            limits=self._config.limits(),
            resume=resume,
        )

    async def _carry(self, link: Link, welcome: Welcome) -> _Outcome:
        """Carry the session over `link` until it is lost; what a rival brought that replaced it.

        Make before break: while the link is in doubt, another is sought beside it.
        """
        self._keeping.cancel()
        self._last_failure = ""
        since = trio.current_time()
        rivals: list[_Outcome] = []
        self._keys.hear(welcome)
        if self._keys.follow(welcome):
            link.close()
            outcome = await self._try_to_attach(self._hello)
            self._keep_unless(outcome)
            return outcome
        try:
            serving = self._serving_for(welcome)
            self._tell_link_up(link, welcome)
            async with trio.open_nursery() as nursery:
                self._doubt, self._committed = trio.Event(), False
                nursery.start_soon(self._seek_rival, serving.endpoint, rivals)
                await self._carry_alone(serving.endpoint, link, welcome.received)
                if not self._attempting_rival:
                    nursery.cancel_scope.cancel()
        except SessionLost as exc:  # not even begun
            event(log, logging.ERROR, "session-lost", reason=str(exc))
            self._end_session()
            link.close()
        if trio.current_time() - since >= STEADY:
            self._backoff.reset()
            self._lost_at = trio.current_time()
        outcome = rivals[0] if rivals else (None, 0.0)
        self._keep_unless(outcome)
        return outcome

    def _keep_unless(self, outcome: _Outcome) -> None:
        """Without another link the session waits for one."""
        if self._serving is not None and outcome[0] is None:
            self._keeping = trio.CancelScope()
            self._nursery.start_soon(self._keep_session, self._keeping)

    def _tell_link_up(self, link: Link, welcome: Welcome) -> None:
        host, port = link.peername
        self._relay_address, self._name = host, welcome.name
        self._link_address = str(HostPort(host, port))
        self._history.came(trio.current_time(), resumed=welcome.resumed)
        self._ways_changed.set()
        event(
            log,
            logging.INFO,
            "link-up",
            name=welcome.name,
            relay=self._link_address,
            resumed=welcome.resumed,
            software=welcome.software,
        )

    async def _carry_alone(self, endpoint: Endpoint, link: Link, received: int) -> None:
        """Closes the link at once: a rival needs what the old one still has in the uplink."""
        try:
            await endpoint.carry(link, received)
        except LinkLost as exc:
            event(log, logging.WARNING, "link-down", reason=str(exc))
            self._history.went(trio.current_time(), str(exc))
            if self._serving is not None and self._serving.relay_gone:
                self._end_session()
        except SessionLost as exc:
            event(log, logging.ERROR, "session-lost", reason=str(exc))
            self._history.went(trio.current_time(), str(exc))
            self._end_session()
        finally:
            link.close()

    async def _seek_rival(self, endpoint: Endpoint, found: list[_Outcome]) -> None:
        """Once the link is in doubt, try to attach beside it until it speaks or is dead.

        What the attempt brought that gave the link up, or outlived it, is `found`.
        """
        while True:
            await self._doubt.wait()
            self._doubt = trio.Event()
            while endpoint.in_doubt:
                event(log, logging.INFO, "link-in-doubt")
                self._attempting_rival = True
                try:
                    outcome = await self._try_to_attach(partial(self._commit, endpoint))
                except _Needless:
                    event(log, logging.INFO, "link-alive")
                    break
                finally:
                    self._attempting_rival = False
                if self._committed or endpoint.link is None:
                    found.append(outcome)
                    return
                with trio.CancelScope() as self._pause:
                    await trio.sleep(RIVAL_PAUSE)

    def _commit(self, endpoint: Endpoint) -> Hello:
        # There may be no link to go back to: it is dead, or was given up before a call-off.
        if endpoint.link is not None and not endpoint.in_doubt:
            raise _Needless
        self._committed = True
        return self._hello()

    def _has_link(self) -> bool:
        """A rival that is denied before it has committed leaves one."""
        return self._serving is not None and self._serving.endpoint.link is not None

    def _serving_for(self, welcome: Welcome) -> Publisher:
        if welcome.resumed:
            if self._serving is None or welcome.session != self._session:
                raise SessionLost("the relay resumed a session that is not ours")
            return self._serving
        self._end_session()
        session = Session(
            relay=False,
            options=self._config.session_options(self._cap, self._pool),
            peer=welcome.limits,
        )
        self._session = welcome.session
        self._serving = Publisher(
            session,
            self._services,
            max_streams=self._config.max_streams,
            pool=self._pool,
            nursery=self._nursery,
            on_suspicion=self._suspect,
        )
        return self._serving

    def _suspect(self) -> None:
        self._doubt.set()

    async def _keep_session(self, keeping: trio.CancelScope) -> None:
        """As at the relay: who has waited this long at a dead shell has left."""
        with keeping:
            await wait_until(trio.current_time() + self._config.detached_keep)
        if not keeping.cancel_called:  # also not in the very turn in which the time was up
            event(log, logging.WARNING, "session-expired")
            self._end_session()
            self._attempt.cancel()  # it may have asked for this session

    def _end_session(self) -> None:
        if self._serving is not None:
            self._serving.lose()
        self._serving = self._session = None

    async def _wait(self, least: float, *, since: float) -> None:
        """Until the next attempt: `least` from now, and the backoff from when the last one began.

        One that stayed unanswered until its deadline was pause enough.
        """
        streams = self._serving.endpoint.session.open_streams if self._serving else 0
        self._backoff.cap = CAP_WITH_STREAMS if streams else CAP_WITHOUT_STREAMS
        away = trio.current_time() - self._lost_at
        until = max(trio.current_time() + least, since + self._backoff.next_delay(away=away))
        with trio.CancelScope() as self._pause:
            await trio.sleep_until(until)

    def look_again(self) -> None:
        """The network may have changed: dial now, or ask the link for a sign of life.

        An attempt under way starts over: it may be waiting for an answer to where we were.
        """
        event(log, logging.INFO, "network-changed")
        if trio.current_time() - self._attempt_began >= YOUNG:
            self._attempt.cancel()
        self._pause.cancel()
        if self._serving is not None:
            self._serving.endpoint.probe()

    def rotate_key(self, state: StateFolder) -> dict[str, object]:
        """Have another key, and let the relay know at once. Raises ConfigError, StateError."""
        self._keys.own = rotate(state)
        self._come_again("this agent has a new key")
        return {}

    def _come_again(self, reason: str) -> None:
        """Go on over another link, made with the keys as they are now."""
        self._attempt.cancel()
        self._pause.cancel()
        if self._serving is not None:
            self._serving.endpoint.drop_link(reason)

    async def wait_ways(self) -> None:
        """Until `ways` may be others."""
        await self._ways_changed.wait()
        self._ways_changed = trio.Event()

    def ways(self) -> list[str]:
        """The addresses whose way from here matters."""
        relay = self._keys.relay
        hosts = (*relay.hosts, *relay.further)
        literal = [host.host for host in hosts if is_address(host.host)]
        return [self._relay_address, *literal] if self._relay_address else literal

    def status(self) -> dict[str, object]:
        """What `relay-agent status` shows, and the doctor asks for."""
        now = trio.current_time()
        serving = self._serving
        endpoint = None if serving is None else serving.endpoint
        link = None if endpoint is None else endpoint.link
        rtt = None if endpoint is None else endpoint.rtt
        return {
            "version": __version__,
            "age": round(now - self._began, 1),
            "name": self._name,
            "relay": [str(host) for host in (*self.relay.hosts, *self.relay.further)],
            "attached": link is not None,
            "failure": self._last_failure,  # to attach; empty once there is a link
            "link": {
                "address": self._link_address,
                "rtt": None if rtt is None else round(rtt, 6),
                **self._history.facts(now),
            },
            "services": [] if serving is None else serving.services(),
            "streams": [] if endpoint is None else endpoint.streams(),
        }

    async def say_goodbye(self) -> None:
        """Tell the relay that this process ends, if there is a link to say it over."""
        self._leaving = True
        endpoint = None if self._serving is None else self._serving.endpoint
        if endpoint is None or endpoint.link is None:
            return
        endpoint.session.close_link(CloseCode.GONE)
        endpoint.flush()
        await endpoint.link.drain(DRAIN)
