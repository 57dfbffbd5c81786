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
from protocol.transport.splice import Splice
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
    with sock:
        try:
            prepare_spliced(sock)
        except OSError:  # gone already
            return
        about = {"agent": presence.name, "service": listener.service, "source": source[0]}
        ready = await _wait_ready(config, presence, listener)
        splice = ready if isinstance(ready, str) else _open(presence, ready, listener, source)
        if isinstance(splice, str):
            event(log, logging.INFO, "visitor-refused", **about, reason=splice)
            return
        stream = splice.stream
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
            reset=splice.reset_by_peer,
        )


async def _wait_ready(
    config: ServerConfig, presence: Presence, listener: Listener
) -> Endpoint | str:
    """The session to open a stream in, or why there is none."""
    if not (presence.ready(listener) or listener.closed):
        if presence.held >= config.held_visitors:
            return "too many visitors wait for the agent"
        presence.held += 1
        try:
            with trio.move_on_after(config.visitor_wait):
                while not (presence.ready(listener) or listener.closed):
                    await presence.wait_change()
        finally:
            presence.held -= 1
    if listener.closed:
        return "the port is closed"
    return presence.ready(listener) or "the agent is away"


def _open(
    presence: Presence, endpoint: Endpoint, listener: Listener, source: tuple[str, int]
) -> Splice | str:
    try:
        stream = endpoint.session.open(listener.publication, source)
    except SessionLost as exc:
        presence.end_session()  # 2^31 streams: the agent starts a new session at once
        return str(exc)
    if stream is None:
        return "too many streams"
    splice = endpoint.join(stream)
    endpoint.flush()
    return splice
