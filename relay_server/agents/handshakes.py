"""From an accepted TCP connection to an agent that proved who it is.

Until message 1 verifies a caller has proved nothing and gets no byte; until message 3 it may send
4 KiB. It has five seconds for all of it, whatever it does, and counts against the half-open limit
until then. A slow or idle caller delays no other.
"""

from __future__ import annotations

import logging
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from protocol.errors import DenialCode, LinkLost, RemoteProtocolError
from protocol.process.address import HostPort
from protocol.process.logs import event
from protocol.process.rate_limit import RateLimit
from protocol.process.state import StateError
from protocol.transport.handshake import Arrival, respond
from protocol.wire.hello import Denial
from protocol.wire.identifiers import AgentKey, SocketAddress, Token
from relay_server.agents.context import RelayContext
from relay_server.agents.half_open import Bounds, Caller, HalfOpenLimit
from relay_server.agents.manager import Agents
from relay_server.agents.reasons import HandshakeFailure
from relay_server.net.fault_isolation import contained
from relay_server.registry.registry import EnrolledAgent, TokenRefused

if TYPE_CHECKING:
    from relay_server.config import ServerConfig

log = logging.getLogger(__name__)

# A full disk or a locked registry is a matter of minutes, if not of a person.
REGISTRY_RETRY: Final = 10.0


class Handshakes:
    def __init__(self, context: RelayContext, agents: Agents) -> None:
        self._context = context
        self._registry = context.registry
        self._keys = context.keys
        self._agents = agents
        self._nursery = context.nursery
        self._half_open = HalfOpenLimit(lambda: _bounds(context.config))
        # The noise of scanners must not hide the trouble of agents, who know the relay's key.
        self._strangers, self._proved = RateLimit(), RateLimit()

    def on_caller(self, sock: socket.socket, source: SocketAddress) -> None:
        now = trio.current_time()
        scope = trio.CancelScope(deadline=now + self._context.config.handshake_timeout)
        caller = self._half_open.enter(source[0], now, scope.cancel)
        if caller is None:
            sock.close()
            self._tell_failed(source, HandshakeFailure.TOO_MANY_FROM_SOURCE, self._strangers)
            return
        self._nursery.start_soon(self._greet, sock, source, caller, scope)

    async def _greet(
        self,
        sock: socket.socket,
        source: SocketAddress,
        caller: Caller,
        scope: trio.CancelScope,
    ) -> None:
        with sock, contained(address=source[0]):
            known = None
            try:
                with scope:
                    known = await self._meet(sock, source, caller)
            finally:
                self._half_open.leave(caller, trio.current_time(), known=known is not None)
            if scope.cancelled_caught:
                in_time = trio.current_time() < scope.deadline
                why = HandshakeFailure.PUSHED_OUT if in_time else HandshakeFailure.LATE
                self._tell_failed(source, why, self._rate_limit_for(caller))
            if known is not None:
                await self._agents.admit(*known, HostPort(*source))

    async def _meet(
        self, sock: socket.socket, source: SocketAddress, caller: Caller
    ) -> tuple[Arrival, EnrolledAgent] | None:
        """The agent that calls; None for anything else, which is told why if it may know."""
        try:
            verified = partial(self._half_open.prove, caller)
            arrival = await respond(sock, statics=self._keys.all, verified=verified)
            answer = await self._identify(arrival)
            if isinstance(answer, EnrolledAgent):
                if self._has_followed(answer, arrival):
                    self._nursery.start_soon(self._note_follower, answer, arrival)
                return arrival, answer
            event(
                log,
                logging.WARNING,
                "agent-denied",
                address=source[0],
                key=arrival.agent_key.hex(),
                reason=answer.reason,
            )
            self._context.counters.denied[answer.code] += 1
            await arrival.deny(answer)
        except (RemoteProtocolError, LinkLost) as exc:
            why, reason = HandshakeFailure.WRONG_PROTOCOL, str(exc)
        except EOFError:
            why, reason = HandshakeFailure.CLOSED, ""
        except OSError as exc:
            why, reason = HandshakeFailure.NETWORK_ERROR, exc.strerror or str(exc)
        else:
            return None
        self._tell_failed(source, why, self._rate_limit_for(caller), reason)
        return None

    def _rate_limit_for(self, caller: Caller) -> RateLimit:
        return self._proved if caller.proved else self._strangers

    @property
    def half_open(self) -> int:
        """Number of callers that have not completed the handshake."""
        return len(self._half_open)

    def _tell_failed(
        self, source: SocketAddress, why: HandshakeFailure, limit: RateLimit, reason: str = ""
    ) -> None:
        self._context.counters.handshakes_failed[why] += 1
        if limit.allows(trio.current_time()):
            event(
                log,
                logging.INFO,
                "handshake-failed",
                address=source[0],
                reason=reason or why.sentence,
            )
        elif limit.suppressed == 1:
            self._nursery.start_soon(self._tell_suppressed, limit)

    async def _tell_suppressed(self, limit: RateLimit) -> None:
        await trio.sleep_until(limit.ends)
        event(log, logging.INFO, "handshakes-failed", more=limit.take_suppressed())

    async def _identify(self, arrival: Arrival) -> EnrolledAgent | Denial:
        try:
            if arrival.hello.token is not None:
                await self._redeem(arrival.hello.token, arrival.agent_key)
            # Also after a token was redeemed: much may have changed while that waited.
            return self._look_up(arrival.agent_key)
        except TokenRefused as exc:
            return Denial(code=DenialCode.TOKEN, reason=str(exc), retry_after=0.0)
        except StateError as exc:
            event(log, logging.ERROR, "registry-failed", reason=str(exc))
            reason = "the relay cannot use its registry now"
            return Denial(code=DenialCode.BUSY, reason=reason, retry_after=REGISTRY_RETRY)

    async def _redeem(self, token: Token, key: AgentKey) -> None:
        self._registry.check_token(token)
        # Writing waits for the disk; links must not. A caller whose time is up meanwhile may show
        # the token again.
        enrolled = await trio.to_thread.run_sync(
            self._registry.redeem, token, key, time.time(), abandon_on_cancel=True
        )
        event(log, logging.INFO, "agent-enrolled", agent=enrolled.name, ports=list(enrolled.ports))
        # Its name's former key is revoked by this, and may be here.
        self._agents.refresh()

    def _has_followed(self, enrolled: EnrolledAgent, arrival: Arrival) -> bool:
        """Whether the agent came under our current key, and for the first time since a rotation."""
        current = self._keys.current.public
        return bool(self._keys.former) and arrival.relay_key == current != enrolled.relay_key

    async def _note_follower(self, enrolled: EnrolledAgent, arrival: Arrival) -> None:
        # Nobody waits for it, and if it fails the agent's next link tells it again.
        try:
            await trio.to_thread.run_sync(
                self._registry.follow,
                enrolled.name,
                arrival.agent_key,
                arrival.relay_key,
                arrival.hello.successor,
            )
        except StateError as exc:
            event(log, logging.ERROR, "registry-failed", reason=str(exc))
        else:
            event(log, logging.INFO, "agent-followed-key", agent=enrolled.name)

    def _look_up(self, key: AgentKey) -> EnrolledAgent | Denial:
        enrolled = self._registry.agent_by_key(key)
        if enrolled is not None:
            return enrolled
        revoked = self._registry.revoked_name(key)
        if revoked is not None:
            reason = f"this key of {revoked} is revoked"
            return Denial(code=DenialCode.REVOKED, reason=reason, retry_after=0.0)
        return Denial(
            code=DenialCode.UNKNOWN_AGENT,
            reason="this agent is not enrolled here; it needs an invitation",
            retry_after=0.0,
        )


def _bounds(config: ServerConfig) -> Bounds:
    return Bounds(
        total=config.half_open,
        per_source=config.half_open_per_source,
        attempts=config.attempts_per_source,
        per_second=config.attempts_per_second,
    )
