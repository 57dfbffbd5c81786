"""The public ports of one agent: opened by PUBLISH if they are granted, and closed again."""

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
from protocol.wire.identifiers import SocketAddress
from relay_server.agents.listener import Listener, PortUnavailable
from relay_server.agents.saved import SavedVisit
from relay_server.agents.visited_agent import VisitedAgent
from relay_server.agents.visits import Visit, visit

if TYPE_CHECKING:
    import socket

    from relay_server.registry.registry import EnrolledAgent

log = logging.getLogger(__name__)


# `visitor_wait` may be 0; a PUBLISH still needs one flight over the link.
LEAST_ORPHAN_SECONDS: Final = 1.0


class PublicPorts:
    """Its tasks run in the relay's nursery: listeners and visitors outlive links and sessions."""

    def __init__(self, agent: VisitedAgent) -> None:
        self._agent = agent
        self._context = agent.context
        self.listeners: dict[int, Listener] = {}  # by port

    def publish(self, publish: Publish) -> None:
        """Answer a PUBLISH. Granted ports are asked of the registry each time."""
        listener = self.listeners.get(publish.port)
        enrolled = self._grantee(publish)
        if enrolled is None:
            return
        if listener is not None and publish.port in self._agent.publications:
            reason = f"port {publish.port} already serves {listener.service}"
            self._refuse(publish, RefusalCode.LIMIT, reason)
            return
        if listener is None:
            listener = self._new_listener(publish)
            if listener is None:
                return
        elif not listener.open:
            reason = f"another program holds port {publish.port}"
            self._refuse(publish, RefusalCode.PORT_BUSY, reason)
        listener.admission = enrolled.admission(publish.port)
        listener.service = publish.service
        self._agent.publications[publish.port] = publish.publication
        self._confirm(listener)

    def take_back(self, sock: socket.socket, saved: SavedVisit[Fields]) -> None:
        """Go on with a visitor that the process before had. Raises RemoteProtocolError."""
        agent, listener = self._agent, self.listeners.get(saved.port)
        if saved.stream is not None and saved.splice is not None and agent.endpoint is not None:
            # Its port may be closed by now, or serve something else; streams go on.
            one = Visit(agent, saved.port, saved.service, sock, saved.source)
            splice = one.restore(agent.endpoint, saved.stream, saved.splice)
            self._context.nursery.start_soon(one.go_on, splice)
        elif listener is None:
            sock.close()
        else:
            self._on_visitor(listener, sock, saved.source)

    def withdraw(self, publication: int) -> None:
        for listener in list(self.listeners.values()):
            if self._agent.publications.get(listener.port) == publication:
                self.close(listener, "withdrawn")

    def keep_granted(self, enrolled: EnrolledAgent) -> None:
        """Close what is no longer granted, and tell the agent, which asks again in its own time.

        Who may visit the others is asked anew of each visitor that comes or waits; streams go on.
        """
        for listener in list(self.listeners.values()):
            listener.admission = enrolled.admission(listener.port)
            if listener.port not in enrolled.ports:
                publication = self._agent.publications.get(listener.port)
                self.close(listener, "no longer granted")
                if publication is not None and self._agent.endpoint is not None:
                    reason = f"port {listener.port} is no longer granted to {self._agent.name}"
                    code = RefusalCode.NOT_GRANTED
                    self._agent.endpoint.session.refused(publication, code, reason)
                    self._agent.endpoint.flush()

    async def close_orphans(self, endpoint: Endpoint) -> None:
        """Close the ports that a new session has not published within `visitor_wait`."""
        agent = self._agent
        while agent.endpoint is endpoint:
            await trio.sleep(max(self._context.config.visitor_wait, LEAST_ORPHAN_SECONDS))
            # What an agent that has gone away meanwhile sent may be still on its way.
            if agent.endpoint is endpoint and agent.ownership.attached:
                for listener in list(self.listeners.values()):
                    if listener.port not in agent.publications:
                        self.close(listener, "no longer published")
                return

    def close_all(self, reason: str) -> None:
        for listener in list(self.listeners.values()):
            self.close(listener, reason)

    def close(self, listener: Listener, reason: str) -> None:
        """Free the port at once; visitors who wait at it are reset, streams go on."""
        del self.listeners[listener.port]
        self._agent.publications.pop(listener.port, None)
        listener.close()
        self._agent.notify()
        event(
            log,
            logging.INFO,
            "port-closed",
            agent=self._agent.name,
            service=listener.service,
            port=listener.port,
            reason=reason,
        )

    def _grantee(self, publish: Publish) -> EnrolledAgent | None:
        """The agent, if the port is granted to it; else `publish` is refused."""
        try:
            enrolled = self._context.registry.agent_by_key(self._agent.key)
        except StateError as exc:
            event(log, logging.ERROR, "registry-failed", reason=str(exc))
            reason = "the relay cannot read its registry"
            self._refuse(publish, RefusalCode.PORT_FAILED, reason)
            return None
        if enrolled is not None and publish.port in enrolled.ports:
            return enrolled
        reason = f"port {publish.port} is not granted to {self._agent.name}"
        self._refuse(publish, RefusalCode.NOT_GRANTED, reason)
        return None

    def _new_listener(self, publish: Publish) -> Listener | None:
        """None if the port cannot be opened and trying again would not help."""
        listener = Listener(publish.port, publish.service, stored=self._context.stored)
        try:
            listener.try_open(self._context.config.bind)
        except PortUnavailable as exc:
            self._refuse(publish, exc.code, exc.reason)
            if exc.code is not RefusalCode.PORT_BUSY:
                return None
        self.listeners[publish.port] = listener
        self._context.nursery.start_soon(self._serve, listener)
        return listener

    async def _serve(self, listener: Listener) -> None:
        await listener.serve(
            self._context.config.bind,
            agent=self._agent.name,
            opened=partial(self._confirm, listener),
            on_visitor=partial(self._on_visitor, listener),
            on_failure=self._context.counters.accept_failed,
        )

    def _on_visitor(
        self,
        listener: Listener,
        sock: socket.socket,
        source: SocketAddress,
    ) -> None:
        self._context.nursery.start_soon(visit, self._agent, listener, sock, source)

    def _confirm(self, listener: Listener) -> None:
        agent = self._agent
        publication = agent.publications.get(listener.port)
        if listener.open and publication is not None and agent.endpoint is not None:
            agent.endpoint.session.published(publication, listener.port)
            agent.endpoint.flush()
            agent.notify()

    def _refuse(self, publish: Publish, code: RefusalCode, reason: str) -> None:
        event(
            log,
            logging.WARNING,
            "publication-refused",
            agent=self._agent.name,
            service=publish.service,
            port=publish.port,
            reason=reason,
        )
        if self._agent.endpoint is not None:
            self._agent.endpoint.session.refused(publish.publication, code, reason)
