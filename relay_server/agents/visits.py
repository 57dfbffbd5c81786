"""One visitor: from its socket past lists and guard to a stream, which it may have to wait for."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import trio

from protocol.errors import RemoteProtocolError, ResetCode, SessionLost
from protocol.process import handover
from protocol.process.logs import event
from protocol.transport.endpoint import Endpoint
from protocol.transport.sockets import prepare_spliced
from protocol.transport.splice import Splice
from protocol.transport.status import StreamAbout
from protocol.wire.body import Fields
from protocol.wire.identifiers import SocketAddress
from relay_server.agents.listener import Listener
from relay_server.agents.reasons import Refusal, VisitorRefused
from relay_server.agents.saved import SavedVisit
from relay_server.agents.visited_agent import VisitedAgent
from relay_server.guard.guard import IDENT_BYTES, Ending, Guard, Traffic, is_established
from relay_server.guard.rules import Rules
from relay_server.guard.ssh_ident import Identification, look, wait_identification
from relay_server.guard.ssh_login import LoginDetector
from relay_server.guard.waiting_line import WaitingLine
from relay_server.net.fault_isolation import contained

log = logging.getLogger(__name__)

_REFUSED_OPENINGS: Final = {
    Identification.FOREIGN: Refusal.NOT_SSH,
    Identification.GONE: Refusal.GONE_SILENT,
}
# How `Splice.reset_by_peer` says that the target's socket was reset, and not by us.
_BY_TARGET: Final = "aborted"


async def visit(
    agent: VisitedAgent, listener: Listener, sock: socket.socket, source: SocketAddress
) -> None:
    """Carry one visitor from accept to the end. Owns `sock`."""
    one = NewVisit(agent, listener, sock, source)
    refusal: Refusal | None = None
    with one.here():
        try:
            prepare_spliced(sock)
        except OSError:  # gone already
            return
        with one.scope, contained(one.lose_session, **one.about):
            try:
                await one.run()
            except VisitorRefused as exc:
                refusal = exc.refusal
    if one.evicted:
        refusal = Refusal.EVICTED
    if refusal is None:
        return
    # The socket is closed by now. To log this may take until the rate limit allows it.
    one.line.refused[refusal] += 1
    agent.context.counters.refused[refusal] += 1
    if refusal is Refusal.EVICTED:
        await one.line.log_evicted(one.about, one.traffic())
    else:
        await one.line.log_refused(one.about, refusal.sentence)


class Visit:
    """A visitor's socket, and the stream that it is joined to or waits for."""

    def __init__(
        self,
        agent: VisitedAgent,
        port: int,
        service: str,
        sock: socket.socket,
        source: SocketAddress,
    ) -> None:
        """It came from `source` to the public `port`, which served `service` then."""
        self._agent = agent
        self._port = port
        self._service = service
        self.sock = sock
        self._source = source
        self.about: StreamAbout = {"agent": agent.name, "service": service, "source": source[0]}
        self.scope = trio.CancelScope()  # cancelled when evicted
        self._came = trio.current_time()
        self._joined: tuple[Endpoint, Splice] | None = None
        self._login = LoginDetector()

    @contextmanager
    def here(self) -> Iterator[None]:
        """While the socket is open."""
        self._agent.visits.add(self)
        try:
            with self.sock:
                yield
        finally:
            self._agent.visits.discard(self)

    def save(self) -> SavedVisit[dict[str, object]] | None:
        """For another process; None if the visit is about to end. No task may run after this."""
        if self.scope.cancel_called or self.sock.fileno() < 0:
            return None
        saved: SavedVisit[dict[str, object]] = SavedVisit(
            socket=handover.cookie(self.sock),
            port=self._port,
            service=self._service,
            source=self._source,
        )
        if self._joined is None:
            return saved
        splice = self._joined[1]
        exported = splice.export()
        if exported is None:
            return None
        return replace(saved, stream=splice.stream, splice=exported)

    def restore(self, endpoint: Endpoint, stream: int, saved: Fields) -> Splice:
        """The stream that the process before began, for `go_on`. Raises RemoteProtocolError."""
        splice = self._join(endpoint, stream)
        try:
            splice.restore(saved)
        except RemoteProtocolError:
            endpoint.forget(splice)
            raise
        self._joined = endpoint, splice
        return splice

    async def go_on(self, splice: Splice) -> None:
        """Carry it to its end. The guard no longer counts it."""
        with self.here(), self.scope, contained(self.lose_session, **self.about):
            await self._see_through(splice, told=True)

    async def _see_through(self, splice: Splice, *, told: bool) -> None:
        with self._agent.context.counters.carrying(self._service, splice):
            await splice.run(self.sock)
        # It may have been evicted in the turn in which it ended.
        await trio.lowlevel.checkpoint_if_cancelled()
        established = is_established(self.traffic(), trio.current_time() - self._came)
        event(
            log,
            logging.INFO if told or established else logging.DEBUG,
            "visitor-out",
            **self.about,
            stream=splice.stream,
            received=splice.sent,
            sent=splice.delivered,
            reset=splice.reset_by_peer,
            **({"login": "seen"} if self._login.seen else {}),
        )

    def _join(self, endpoint: Endpoint, stream: int) -> Splice:
        """With what `status` lists a stream by."""
        return endpoint.join(stream, {**self.about, "port": self._port})

    def lose_session(self) -> None:
        """After a bug of ours, which may have left the session in any state."""
        if self._joined is not None and self._agent.endpoint is self._joined[0]:
            self._agent.end_session()

    def traffic(self) -> Traffic:
        if self._joined is None:
            return Traffic()
        splice = self._joined[1]
        return Traffic(splice.sent, splice.delivered, self._login.seen)


class NewVisit(Visit):
    """One that was accepted by this process: past the lists and the guard to its stream."""

    def __init__(
        self,
        agent: VisitedAgent,
        listener: Listener,
        sock: socket.socket,
        source: SocketAddress,
    ) -> None:
        super().__init__(agent, listener.port, listener.service, sock, source)
        self._listener = listener
        self._rules = agent.context.config.rules(agent.name, listener.service)
        self.line = _line_of(self._rules, agent, listener)
        self.evicted = False
        self._identification = Identification.SILENT

    async def run(self) -> None:
        """Carry the visitor. Raises VisitorRefused."""
        host = self._source[0]
        self._check_lists()
        if len(self._agent.visits) > self._agent.context.config.most_visitors:
            raise VisitorRefused(Refusal.TOO_MANY_OF_AGENT)
        if host in self._agent.context.config.penalty_exempt or not self._rules.enabled:
            await self._carry()
            return
        visitor = await self.line.enter(
            host, patience=self._rules.patience, traffic=self.traffic, evict=self._evict
        )
        if visitor is None:
            raise VisitorRefused(Refusal.TOO_MANY_FROM_SOURCE)
        ending = Ending.OURS
        try:
            await self._hold()
            await self._carry()
        except VisitorRefused:
            ending = self._ending()
            raise
        else:
            ending = self._ending()
        finally:
            self.line.guard.leave(visitor, trio.current_time(), ending)

    def _check_lists(self) -> None:
        """Those for all services, for some, and of this port. Raises VisitorRefused."""
        host = self._source[0]
        for one in (
            self._agent.context.config.admission,
            self._rules.admission,
            self._listener.admission,
        ):
            if one.denies(host):
                raise VisitorRefused(Refusal.SOURCE_DENIED)
            if not one.allows(host):
                raise VisitorRefused(Refusal.SOURCE_NOT_ALLOWED)

    async def _hold(self) -> None:
        """Until the visitor begins as an SSH client does, or has had its time to.

        Raises VisitorRefused if it begins otherwise, or ends.
        """
        if not self._rules.hold:
            return
        with trio.move_on_after(self._rules.hold) as scope:
            with self._listener.ending(scope):
                await wait_identification(self.sock)
        # A task woken in the turn in which it is evicted runs once more.
        await trio.lowlevel.checkpoint_if_cancelled()
        self._identification = look(self.sock, waited=not scope.cancelled_caught)
        if self._identification in _REFUSED_OPENINGS:
            raise VisitorRefused(_REFUSED_OPENINGS[self._identification])

    async def _carry(self) -> None:
        splice = self._open(await self._wait_ready())
        told = self.line.log_arrival(self.about, splice.stream)
        await self._see_through(splice, told=told)

    async def _wait_ready(self) -> Endpoint:
        """The session to open a stream in, once there is one. Raises VisitorRefused."""
        agent, listener = self._agent, self._listener
        if not (agent.ready(self._port) or listener.closed):
            if agent.waiting_unread >= self._agent.context.config.held_visitors:
                raise VisitorRefused(Refusal.TOO_MANY_WAITING)
            agent.waiting_unread += 1
            try:
                with trio.move_on_at(self._came + self._agent.context.config.visitor_wait):
                    while not (agent.ready(self._port) or listener.closed):
                        await agent.wait_change()
            finally:
                agent.waiting_unread -= 1
            # A task woken in the turn in which it is evicted runs once more.
            await trio.lowlevel.checkpoint_if_cancelled()
        if listener.closed:
            raise VisitorRefused(Refusal.PORT_CLOSED)
        self._check_lists()  # again: they may have changed since it came
        ready = agent.ready(self._port)
        if ready is None:
            raise VisitorRefused(Refusal.AGENT_AWAY)
        return ready

    def _open(self, endpoint: Endpoint) -> Splice:
        """Raises VisitorRefused."""
        try:
            stream = endpoint.session.open(self._agent.publications[self._port], self._source)
        except SessionLost:
            self._agent.end_session()  # 2^31 streams: the agent starts a new session at once
            raise VisitorRefused(Refusal.STREAM_IDS_USED_UP) from None
        if stream is None:
            raise VisitorRefused(Refusal.TOO_MANY_STREAMS)
        splice = self._join(endpoint, stream)
        if self._rules.enabled and self._rules.ssh:
            splice.overhear = self._login.hear
        self._joined = endpoint, splice
        endpoint.flush()
        return splice

    # For the guard

    def traffic(self) -> Traffic:
        if self._joined is None and self._identification is Identification.SSH:
            # Nothing has been read yet, but a visitor that sent `SSH-` counts as having begun.
            return Traffic(IDENT_BYTES)
        return super().traffic()

    def _evict(self) -> None:
        self.evicted = True
        self.scope.cancel()
        if self._joined is not None:
            # Before the splice does it itself, as if the visitor had gone.
            endpoint, splice = self._joined
            endpoint.session.reset(splice.stream, ResetCode.REFUSED)
            endpoint.flush()

    def _ending(self) -> Ending:
        """Whether the visitor is to blame: not where the agent went away meanwhile."""
        if self._identification in _REFUSED_OPENINGS:
            return Ending.THEIRS
        agent = self._agent
        if self._joined is None or not agent.ownership.attached or agent.since > self._came:
            return Ending.OURS
        splice = self._joined[1]
        is_theirs = splice.reset_by_peer in (None, _BY_TARGET)
        return Ending.THEIRS if is_theirs else Ending.OURS


def _line_of(rules: Rules, agent: VisitedAgent, listener: Listener) -> WaitingLine:
    line = agent.lines.get(listener.port)
    if line is None or line.service != listener.service:
        line = agent.lines[listener.port] = WaitingLine(Guard(rules.caps), listener.service)
    line.guard.caps = rules.caps  # the configuration may have changed since the last visitor
    return line
