"""PUBLISH and UNPUBLISH: which agent may open which public port, and when it closes."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from protocol.errors import RefusalCode
from protocol.process.logs import event
from protocol.process.state import StateError
from protocol.transport.endpoint import Endpoint
from protocol.wire.body import Fields
from protocol.wire.frame import Publish
from relay_server.agents.agent_state import AgentState
from relay_server.agents.context import RelayContext
from relay_server.agents.listener import Listener, PortUnavailable
from relay_server.agents.saved import SavedVisit
from relay_server.agents.visits import Visit, visit

if TYPE_CHECKING:
    import socket

    from relay_server.registry.registry import EnrolledAgent

log = logging.getLogger(__name__)


# Visitors may be told not to wait at all; a PUBLISH still takes a flight over the link.
LEAST_ORPHAN_SECONDS: Final = 1.0


class Ports:
    def __init__(self, context: RelayContext) -> None:
        self._context = context
        self._nursery = context.nursery

    def publish(self, agent: AgentState, publish: Publish) -> None:
        """Answer a PUBLISH. Granted ports are asked of the registry each time."""
        listener = agent.listeners.get(publish.port)
        enrolled = self._grantee(agent, publish)
        if enrolled is None:
            return
        if listener is not None and listener.publication:
            reason = f"port {publish.port} already serves {listener.service}"
            self._refuse(agent, publish, RefusalCode.LIMIT, reason)
            return
        if listener is None:
            listener = self._new_listener(agent, publish)
            if listener is None:
                return
        elif not listener.open:
            reason = f"another program holds port {publish.port}"
            self._refuse(agent, publish, RefusalCode.PORT_BUSY, reason)
        listener.admission = enrolled.admission(publish.port)
        listener.service = publish.service
        listener.publication = publish.publication
        self._confirm(agent, listener)

    def take_back(self, agent: AgentState, sock: socket.socket, saved: SavedVisit[Fields]) -> None:
        """Go on with a visitor of another process of ours. Raises RemoteProtocolError."""
        listener = agent.listeners.get(saved.port)
        if saved.stream is not None and saved.splice is not None and agent.endpoint is not None:
            # Its port may be closed by now, or serve something else; streams go on.
            listener = Listener(saved.port, saved.service)
            one = Visit(self._context, agent, listener, sock, saved.source)
            splice = one.restore(agent.endpoint, saved.stream, saved.splice)
            self._nursery.start_soon(one.go_on, splice)
        elif listener is None:
            sock.close()
        else:
            self._on_visitor(agent, listener, sock, saved.source)

    def withdraw(self, agent: AgentState, publication: int) -> None:
        for listener in list(agent.listeners.values()):
            if listener.publication == publication:
                self.close(agent, listener, "withdrawn")

    def keep_granted(self, agent: AgentState, enrolled: EnrolledAgent) -> None:
        """Close what is no longer granted, and tell the agent, which asks again in its own time.

        Who may visit the others is asked anew of each visitor that comes or waits; streams go on.
        """
        for listener in list(agent.listeners.values()):
            listener.admission = enrolled.admission(listener.port)
            if listener.port not in enrolled.ports:
                publication = listener.publication
                self.close(agent, listener, "no longer granted")
                if publication and agent.endpoint is not None:
                    reason = f"port {listener.port} is no longer granted to {agent.name}"
                    code = RefusalCode.NOT_GRANTED
                    agent.endpoint.session.refused(publication, code, reason)
                    agent.endpoint.flush()

    async def close_orphans(self, agent: AgentState, endpoint: Endpoint) -> None:
        """A new session publishes at once whatever it will; other ports are of the past."""
        while agent.endpoint is endpoint:
            await trio.sleep(max(self._context.config.visitor_wait, LEAST_ORPHAN_SECONDS))
            # What an agent that has gone away meanwhile sent may be still on its way.
            if agent.endpoint is endpoint and agent.ownership.attached:
                for listener in list(agent.listeners.values()):
                    if not listener.publication:
                        self.close(agent, listener, "no longer published")
                return

    def close_all(self, agent: AgentState, reason: str) -> None:
        for listener in list(agent.listeners.values()):
            self.close(agent, listener, reason)

    def close(self, agent: AgentState, listener: Listener, reason: str) -> None:
        """Free the port at once; visitors who wait at it are reset, streams go on."""
        del agent.listeners[listener.port]
        listener.close()
        agent.notify()
        event(
            log,
            logging.INFO,
            "port-closed",
            agent=agent.name,
            service=listener.service,
            port=listener.port,
            reason=reason,
        )

    def _grantee(self, agent: AgentState, publish: Publish) -> EnrolledAgent | None:
        """The agent, if the port is granted to it; else `publish` is refused."""
        try:
            enrolled = self._context.registry.agent_by_key(agent.key)
        except StateError as exc:
            event(log, logging.ERROR, "registry-failed", reason=str(exc))
            reason = "the relay cannot read its registry"
            self._refuse(agent, publish, RefusalCode.PORT_FAILED, reason)
            return None
        if enrolled is not None and publish.port in enrolled.ports:
            return enrolled
        reason = f"port {publish.port} is not granted to {agent.name}"
        self._refuse(agent, publish, RefusalCode.NOT_GRANTED, reason)
        return None

    def _new_listener(self, agent: AgentState, publish: Publish) -> Listener | None:
        """None if the port cannot be opened and trying again would not help."""
        listener = Listener(publish.port, publish.service, stored=self._context.stored)
        try:
            listener.try_open(self._context.config.bind)
        except PortUnavailable as exc:
            self._refuse(agent, publish, exc.code, exc.reason)
            if exc.code is not RefusalCode.PORT_BUSY:
                return None
        agent.listeners[publish.port] = listener
        self._nursery.start_soon(self._serve, agent, listener)
        return listener

    async def _serve(self, agent: AgentState, listener: Listener) -> None:
        await listener.serve(
            self._context.config.bind,
            agent=agent.name,
            opened=partial(self._confirm, agent, listener),
            on_visitor=partial(self._on_visitor, agent, listener),
            on_failure=self._context.counters.accept_failed,
        )

    def _on_visitor(
        self,
        agent: AgentState,
        listener: Listener,
        sock: socket.socket,
        source: tuple[str, int],
    ) -> None:
        self._nursery.start_soon(visit, self._context, agent, listener, sock, source)

    def _confirm(self, agent: AgentState, listener: Listener) -> None:
        if listener.open and listener.publication and agent.endpoint is not None:
            agent.endpoint.session.published(listener.publication, listener.port)
            agent.endpoint.flush()
            agent.notify()

    def _refuse(self, agent: AgentState, publish: Publish, code: RefusalCode, reason: str) -> None:
        event(
            log,
            logging.WARNING,
            "publication-refused",
            agent=agent.name,
            service=publish.service,
            port=publish.port,
            reason=reason,
        )
        if agent.endpoint is not None:
            agent.endpoint.session.refused(publish.publication, code, reason)
