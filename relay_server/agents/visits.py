"""From a visitor's socket past the guard to a stream. While the agent is away a visitor waits."""

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
from protocol.wire.body import Fields
from relay_server.agents.agent_state import AgentState
from relay_server.agents.context import RelayContext
from relay_server.agents.listener import Listener
from relay_server.agents.reasons import Refusal, VisitorRefused
from relay_server.agents.saved import SavedVisit
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
    context: RelayContext,
    agent: AgentState,
    listener: Listener,
    sock: socket.socket,
    source: tuple[str, int],
) -> None:
    """Carry one visitor from accept to the end. Owns `sock`."""
    one = Visit(context, agent, listener, sock, source)
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
    context.counters.refused[refusal] += 1
    if refusal is Refusal.EVICTED:
        await one.line.log_evicted(one.about, one.traffic())
    else:
        await one.line.log_refused(one.about, refusal.sentence)


class Visit:
    def __init__(
        self,
        context: RelayContext,
        agent: AgentState,
        listener: Listener,
        sock: socket.socket,
        source: tuple[str, int],
    ) -> None:
        self._context = context
        self._agent = agent
        self._listener = listener
        self.sock = sock
        self._source = source
        self.about = {"agent": agent.name, "service": listener.service, "source": source[0]}
        self._rules = context.config.rules(agent.name, listener.service)
        self.line = _line_of(self._rules, agent, listener)
        self.scope = trio.CancelScope()  # cancelled when evicted
        self.evicted = False
        self._came = trio.current_time()
        self._identification = Identification.SILENT
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
            port=self._listener.port,
            service=self._listener.service,
            source=self._source,
        )
        if self._joined is None:
            return saved
        splice = self._joined[1]
        exported = splice.export()
        if exported is None:
            return None
        return replace(saved, stream=splice.stream, splice=exported)

    async def run(self) -> None:
        """Carry the visitor. Raises VisitorRefused."""
        host = self._source[0]
        self._check_lists()
        if len(self._agent.visits) > self._context.config.most_visitors:
            raise VisitorRefused(Refusal.TOO_MANY_OF_AGENT)
        if host in self._context.config.penalty_exempt or not self._rules.enabled:
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
            self._context.config.admission,
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

    def restore(self, endpoint: Endpoint, stream: int, saved: Fields) -> Splice:
        """What another process has begun, for `go_on`. Raises RemoteProtocolError."""
        splice = self._join(endpoint, stream)
        try:
            splice.restore(saved)
        except RemoteProtocolError:
            endpoint.forget(splice)
            raise
        self._joined = endpoint, splice
        return splice

    async def go_on(self, splice: Splice) -> None:
        """Carry it on to its end; no guard counts it any more."""
        with self.here(), self.scope, contained(self.lose_session, **self.about):
            await self._see_through(splice, told=True)

    async def _see_through(self, splice: Splice, *, told: bool) -> None:
        with self._context.counters.carrying(self._listener.service, splice):
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

    async def _wait_ready(self) -> Endpoint:
        """The session to open a stream in, once there is one. Raises VisitorRefused."""
        agent, listener = self._agent, self._listener
        if not (agent.ready(listener) or listener.closed):
            if agent.waiting_unread >= self._context.config.held_visitors:
                raise VisitorRefused(Refusal.TOO_MANY_WAITING)
            agent.waiting_unread += 1
            try:
                with trio.move_on_at(self._came + self._context.config.visitor_wait):
                    while not (agent.ready(listener) or listener.closed):
                        await agent.wait_change()
            finally:
                agent.waiting_unread -= 1
            # A task woken in the turn in which it is evicted runs once more.
            await trio.lowlevel.checkpoint_if_cancelled()
        if listener.closed:
            raise VisitorRefused(Refusal.PORT_CLOSED)
        self._check_lists()  # again: they may have changed since it came
        ready = agent.ready(listener)
        if ready is None:
            raise VisitorRefused(Refusal.AGENT_AWAY)
        return ready

    def _open(self, endpoint: Endpoint) -> Splice:
        """Raises VisitorRefused."""
        try:
            stream = endpoint.session.open(self._listener.publication, self._source)
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

    def _join(self, endpoint: Endpoint, stream: int) -> Splice:
        """With what `status` lists a stream by."""
        return endpoint.join(stream, {**self.about, "port": self._listener.port})

    # For the guard

    def traffic(self) -> Traffic:
        if self._joined is None:
            # All it said is unread; that it has begun shall count while it waits for the agent.
            return Traffic(IDENT_BYTES if self._identification is Identification.SSH else 0)
        splice = self._joined[1]
        return Traffic(splice.sent, splice.delivered, self._login.seen)

    def _evict(self) -> None:
        self.evicted = True
        self.scope.cancel()
        if self._joined is not None:
            # Before the splice does it itself, as if the visitor had gone.
            endpoint, splice = self._joined
            endpoint.session.reset(splice.stream, ResetCode.REFUSED)
            endpoint.flush()

    def lose_session(self) -> None:
        """After a fault of ours: what the session's state is worth, nobody knows."""
        if self._joined is not None and self._agent.endpoint is self._joined[0]:
            self._agent.end_session()

    def _ending(self) -> Ending:
        """How the visit ended: where the agent went away meanwhile, the visitor had no chance."""
        if self._identification in _REFUSED_OPENINGS:
            return Ending.THEIRS
        agent = self._agent
        if self._joined is None or not agent.ownership.attached or agent.since > self._came:
            return Ending.OURS
        splice = self._joined[1]
        is_theirs = splice.reset_by_peer in (None, _BY_TARGET)
        return Ending.THEIRS if is_theirs else Ending.OURS


def _line_of(rules: Rules, agent: AgentState, listener: Listener) -> WaitingLine:
    line = agent.lines.get(listener.port)
    if line is None or line.service != listener.service:
        line = agent.lines[listener.port] = WaitingLine(Guard(rules.caps), listener.service)
    line.guard.caps = rules.caps  # the configuration may have changed since the last visitor
    return line
