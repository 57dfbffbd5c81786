"""An upgrade of the relay drops no login: what this process leaves to the next, and what it finds.

Left are each agent's session, its publications, and its visitors with their sockets. Agents come
back by themselves: they dial as after any loss of a link, and find their sessions there.

    leave   agents are told and links dropped, so that no session moves any more; then all in one
            go, without a turn for any task in between: what is saved is what is
    find    at the start, before anybody is accepted

Not left: half-open callers, what the guards know (visitors that have a stream are counted by no
guard any more), and listeners that no session publishes. What cannot be read is reset, and told in
one line.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from protocol.errors import RemoteProtocolError, ResetCode, SessionLost
from protocol.process import handover
from protocol.process.config import ConfigError
from protocol.process.handover import STATE, StateUnreadable
from protocol.process.logs import event
from protocol.process.state import StateError
from protocol.process.systemd import NamedDescriptor
from protocol.wire.body import Fields
from protocol.wire.frame import CloseCode
from relay_server.agents.agent_state import AgentState
from relay_server.agents.saved import (
    SavedAgent,
    decode_agent,
    decode_key,
    decode_visit,
    encode_agent,
)

if TYPE_CHECKING:
    from relay_server.agents.manager import Agents
    from relay_server.net.fd_store import StoredListeners
    from relay_server.registry.registry import Registry

log = logging.getLogger(__name__)

VISITOR: Final = "visitor"


async def upgrade(agents: Agents, stored: StoredListeners, read: Callable[[], object]) -> None:
    """Become what is installed now. Returns if that cannot be; then all goes on.

    `read` raises ConfigError for a configuration that the next one could not start with.
    """
    left: list[NamedDescriptor] = []
    try:
        read()
        reason = await handover.why_not("relay_server.process.run")
    except ConfigError as exc:
        reason = str(exc)
    if not reason:
        try:
            left = _leave(agents)
            handover.replace_process([*stored.left(), *left])
        except OSError as exc:
            reason = exc.strerror or str(exc)
    for name, descriptor in left:
        if name == STATE:
            os.close(descriptor)
    event(log, logging.ERROR, "upgrade-failed", reason=reason)


def leave_to_manager(agents: Agents) -> None:
    """End, and leave the sessions in the FD store. Returns if that cannot be."""
    try:
        handover.store(_leave(agents))
    except OSError as exc:
        event(log, logging.ERROR, "sessions-lost", reason=exc.strerror or str(exc))
    else:
        # No task may run again: it could read from a socket, or write to it, what is saved already.
        os._exit(0)


def _leave(agents: Agents) -> list[NamedDescriptor]:
    """The state and all visitors' sockets, for a carrier. Raises OSError.

    From here on nothing may run, unless the carrier fails.
    """
    agents.say_goodbye(CloseCode.RESTARTING)
    sockets: list[NamedDescriptor] = []
    state = handover.write_state(_records(agents.present, sockets))
    event(log, logging.INFO, "handing-over", visitors=len(sockets))
    return [(STATE, state), *sockets]


def _records(
    present: list[AgentState], sockets: list[NamedDescriptor]
) -> Iterator[dict[str, object]]:
    for agent in present:
        endpoint, session_id = agent.endpoint, agent.ownership.session
        if endpoint is None or session_id is None:
            continue
        endpoint.drop_link("the relay restarts")
        visits = []
        for visit in agent.visits:
            saved = visit.save()
            if saved is not None:
                visits.append(saved)
                sockets.append((VISITOR, visit.sock.fileno()))
        yield encode_agent(agent.save(endpoint, session_id, visits))


class Found:
    """What was left to this process; `others` are the descriptors that are not sessions'."""

    def __init__(self, left: list[NamedDescriptor]) -> None:
        self.others: list[tuple[str, socket.socket]] = []
        self._states = [descriptor for name, descriptor in left if name == STATE]
        self._visitors: dict[int, socket.socket] = {}  # by cookie
        for name, descriptor in left:
            sock = None if name == STATE else handover.as_socket(descriptor)
            if sock is not None and name == VISITOR:
                # Undo the SO_RCVLOWAT that `ssh_ident` sets on a visitor that it holds.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
                self._visitors[handover.cookie(sock)] = sock
            elif sock is not None:
                self.others.append((name, sock))
        if self._states or self._visitors:
            # First of all: whatever we stumble over must not be there at the next start.
            handover.forget(STATE, VISITOR)

    def restore(self, agents: Agents, registry: Registry) -> None:
        """Go on with the sessions; whatever has none is reset."""
        for state in self._states:
            try:
                for record in handover.read_state(state):
                    self._restore_one(record, agents, registry)
            except StateUnreadable as exc:
                event(log, logging.WARNING, "sessions-lost", reason=str(exc))
        self._states.clear()
        for sock in self._visitors.values():
            sock.close()
        self._visitors.clear()

    def _restore_one(self, record: bytes, agents: Agents, registry: Registry) -> None:
        name = None
        try:
            body = handover.unpack(record)
            key = decode_key(body)
            enrolled = registry.agent_by_key(key)
            if enrolled is not None:  # not revoked meanwhile
                name = enrolled.name
                self._go_on(name, decode_agent(key, body), agents)
        except (StateUnreadable, StateError, SessionLost, RemoteProtocolError) as exc:
            event(log, logging.WARNING, "session-lost", agent=name, reason=str(exc))

    def _go_on(self, name: str, saved: SavedAgent[Fields], agents: Agents) -> None:
        agent = AgentState.restored(agents.context, name, saved)
        endpoint = agents.take_back(agent, saved.session)
        # As when the agent asks: the lists may have changed, or the port be taken.
        for publish in saved.publications:
            agent.ports.publish(publish)
        for visit in saved.visits:
            self._rejoin(agent, visit)
        for stream in endpoint.session.streams:
            if stream not in endpoint.splices:
                endpoint.session.reset(stream, ResetCode.ABORTED)

    def _rejoin(self, agent: AgentState, body: Fields) -> None:
        """Have the visitor go on; one that cannot be read is reset, and told in one line."""
        sock = None
        try:
            saved = decode_visit(body)
            sock = self._visitors.pop(saved.socket, None)
            if sock is not None:  # there may have been no room for it in the store
                agent.ports.take_back(sock, saved)
        except RemoteProtocolError as exc:
            if sock is not None:
                sock.close()
            event(log, logging.WARNING, "visitor-lost", agent=agent.name, reason=str(exc))
