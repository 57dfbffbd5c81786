"""From an accepted TCP connection to an agent that proved who it is.

Until message 1 verifies a caller has proved nothing: it gets no byte, a few hundred bytes of memory
and five seconds. Until message 3 it may have 4 KiB. A slow or idle caller delays nobody.
"""

from __future__ import annotations

import logging
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

import trio

from protocol.errors import DenialCode, LinkLost, RemoteProtocolError
from protocol.hello import Denial
from protocol.noise import StaticKey
from protocol.process.logs import event
from protocol.transport.handshake import Arrival, respond
from relay_server.agents import Agents
from relay_server.registry import Agent, TokenRefused

if TYPE_CHECKING:
    from relay_server.config import ServerConfig
    from relay_server.registry import Registry

log = logging.getLogger(__name__)


class Acceptor:
    def __init__(
        self,
        config: ServerConfig,
        registry: Registry,
        key: StaticKey,
        agents: Agents,
        nursery: trio.Nursery,
    ) -> None:
        self._config = config
        self._registry = registry
        self._key = key
        self._agents = agents
        self._nursery = nursery
        # Callers who have proved nothing yet, oldest first.
        self._unproved: dict[socket.socket, trio.CancelScope] = {}

    def on_caller(self, sock: socket.socket, source: tuple[str, int]) -> None:
        if len(self._unproved) >= self._config.half_open:
            # The oldest has had the most time; an agent needs one round trip.
            self._unproved.pop(next(iter(self._unproved))).cancel()
        scope = self._unproved[sock] = trio.CancelScope()
        self._nursery.start_soon(self._greet, sock, source, scope)

    async def _greet(
        self, sock: socket.socket, source: tuple[str, int], scope: trio.CancelScope
    ) -> None:
        with sock:
            arrival = await self._shake_hands(sock, source, scope)
            if arrival is None:
                return
            try:
                answer = await self._identify(arrival)
                if isinstance(answer, Agent):
                    await self._agents.admit(arrival, answer)
                else:
                    event(
                        log,
                        logging.WARNING,
                        "agent-denied",
                        address=source[0],
                        key=arrival.agent_key.hex(),
                        reason=answer.reason,
                    )
                    await arrival.deny(answer)
            except LinkLost as exc:
                event(log, logging.INFO, "link-refused", address=source[0], reason=str(exc))
            finally:
                arrival.link.close()

    async def _shake_hands(
        self, sock: socket.socket, source: tuple[str, int], scope: trio.CancelScope
    ) -> Arrival | None:
        reason = "no handshake in time"
        scope.deadline = trio.current_time() + self._config.handshake_timeout
        try:
            with scope:
                return await respond(sock, static=self._key, verified=partial(self._proved, sock))
        except RemoteProtocolError as exc:
            reason = str(exc)
        except EOFError:
            reason = "closed before the handshake was done"
        except OSError as exc:
            reason = exc.strerror or str(exc)
        finally:
            self._proved(sock)
        event(log, logging.INFO, "handshake-failed", address=source[0], reason=reason)
        return None

    def _proved(self, sock: socket.socket) -> None:
        self._unproved.pop(sock, None)

    async def _identify(self, arrival: Arrival) -> Agent | Denial:
        key, token = arrival.agent_key, arrival.hello.token
        if token is not None:
            try:
                # Writing waits for the disk; links must not.
                agent = await trio.to_thread.run_sync(
                    self._registry.redeem, token, key, time.time()
                )
            except TokenRefused as exc:
                return Denial(code=DenialCode.TOKEN, reason=str(exc), retry_after=0.0)
            event(log, logging.INFO, "agent-enrolled", agent=agent.name, ports=list(agent.ports))
            # Its name's former key is revoked by this, and may be here.
            self._agents.refresh()
            return agent
        enrolled = self._registry.agent_by_key(key)
        if enrolled is not None:
            return enrolled
        if self._registry.is_revoked(key):
            return Denial(
                code=DenialCode.REVOKED, reason="this agent's key is revoked", retry_after=0.0
            )
        return Denial(
            code=DenialCode.UNKNOWN_AGENT,
            reason="this agent is not enrolled here; it needs an invitation",
            retry_after=0.0,
        )
