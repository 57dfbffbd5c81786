"""From a visitor's socket to a stream. While the agent is away a visitor waits, unread."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

import trio

from protocol.errors import SessionLost
from protocol.process.logs import event
from protocol.transport.endpoint import Endpoint
from protocol.transport.sockets import prepare_spliced
from relay_server.listeners import Listener
from relay_server.presence import Presence

if TYPE_CHECKING:
    from relay_server.config import ServerConfig

log = logging.getLogger(__name__)


async def visit(
    config: ServerConfig,
    presence: Presence,
    listener: Listener,
    sock: socket.socket,
    source: tuple[str, int],
) -> None:
    """Carry one visitor from accept to the end. Owns `sock`."""
    try:
        prepare_spliced(sock)
    except OSError:  # gone already
        sock.close()
        return
    about = {"agent": presence.name, "service": listener.service, "source": source[0]}
    endpoint, refusal = await _wait_ready(config, presence, listener), "the agent is away"
    stream = None
    if endpoint is not None:
        stream, refusal = _open(presence, endpoint, listener, source), "too many streams"
    if stream is None or endpoint is None:
        event(log, logging.INFO, "visitor-refused", **about, reason=refusal)
        sock.close()
        return
    splice = endpoint.join(stream)
    endpoint.flush()
    event(log, logging.INFO, "visitor-in", **about, stream=stream)
    await splice.run(sock)
    event(
        log,
        logging.INFO,
        "visitor-out",
        **about,
        stream=stream,
        received=splice.sent,
        sent=splice.delivered,
    )


def _open(
    presence: Presence, endpoint: Endpoint, listener: Listener, source: tuple[str, int]
) -> int | None:
    try:
        return endpoint.session.open(listener.publication, source)
    except SessionLost:
        presence.end_session()  # 2^31 streams: the agent starts a new session at once
        return None


async def _wait_ready(
    config: ServerConfig, presence: Presence, listener: Listener
) -> Endpoint | None:
    """The session to open a stream in; None if there is none in time."""
    if presence.ready(listener):
        return presence.endpoint
    if len(presence.held) >= config.held_visitors:
        return None
    with trio.move_on_after(config.visitor_wait) as scope:
        presence.held.add(scope)
        try:
            while not presence.ready(listener):
                await presence.wait_change()
            return presence.endpoint
        finally:
            presence.held.discard(scope)
    return None
