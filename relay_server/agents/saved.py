"""What one relay process leaves to the next: an agent with its session, and each of its visitors.

Both ways stand here and nowhere else. A map must have exactly the keys that are known: an unknown
one is as wrong as one that is missing. A change of what they mean needs another format number
(protocol.process.handover).

The maps of sessions and of splices are made and read by `protocol.session.snapshot` and `Splice`:
here they are a dict on the way out, and `Fields` on the way in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from protocol.wire.body import Fields
from protocol.wire.frame import MAX_STREAM, Publish
from protocol.wire.hello import MAX_PORTS, MAX_STREAMS, MAX_TEXT, U64_MAX
from protocol.wire.identifiers import (
    ID_SIZE,
    AgentKey,
    InstanceId,
    RelayKey,
    SessionId,
    SocketAddress,
)
from protocol.wire.noise import KEY_SIZE
from relay_server.agents.attach_policy import DISPLACED_KEPT

_Body = TypeVar("_Body", dict[str, object], Fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedVisit(Generic[_Body]):
    socket: int  # the kernel's cookie of it
    port: int  # the public one
    service: str
    source: SocketAddress
    stream: int | None = None  # None while it waits for the agent
    splice: _Body | None = None  # there is one if there is a stream


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedAgent(Generic[_Body]):
    key: AgentKey
    address: str
    relay_key: RelayKey
    rotates: bool
    instance: InstanceId
    epoch: int
    session_id: SessionId
    displaced: tuple[InstanceId, ...]
    session: _Body
    publications: tuple[Publish, ...]
    visits: tuple[_Body, ...]  # each a SavedVisit: one that cannot be read costs no other


def encode_visit(visit: SavedVisit[dict[str, object]]) -> dict[str, object]:
    host, port = visit.source
    body: dict[str, object] = {
        "socket": visit.socket,
        "at": visit.port,
        "service": visit.service,
        "host": host,
        "port": port,
    }
    if visit.stream is not None:
        body |= {"stream": visit.stream, "splice": visit.splice}
    return body


def decode_visit(body: Fields) -> SavedVisit[Fields]:
    """Raises RemoteProtocolError."""
    is_joined = "stream" in body
    visit = SavedVisit(
        socket=body.integer("socket", 0, U64_MAX),
        port=body.integer("at", 1, 65535),
        service=body.text("service", 1, MAX_TEXT),
        source=(body.text("host", 1, MAX_TEXT), body.integer("port", 0, 65535)),
        stream=body.integer("stream", 0, MAX_STREAM) if is_joined else None,
        splice=body.map("splice") if is_joined else None,
    )
    body.finish()
    return visit


def encode_agent(agent: SavedAgent[dict[str, object]]) -> dict[str, object]:
    return {
        "key": agent.key,
        "address": agent.address,
        "relay_key": agent.relay_key,
        "rotates": agent.rotates,
        "instance": agent.instance,
        "epoch": agent.epoch,
        "id": agent.session_id,
        "displaced": list(agent.displaced),
        "session": agent.session,
        "publications": [
            {"id": one.publication, "service": one.service, "port": one.port}
            for one in agent.publications
        ],
        "visits": list(agent.visits),
    }


def decode_key(body: Fields) -> AgentKey:
    """First of all, so that the log can name an agent of which the rest cannot be read.

    Raises RemoteProtocolError.
    """
    return AgentKey(body.octets("key", KEY_SIZE, KEY_SIZE))


def decode_agent(key: AgentKey, body: Fields) -> SavedAgent[Fields]:
    """Raises RemoteProtocolError."""
    agent = SavedAgent(
        key=key,
        address=body.text("address", 0, MAX_TEXT),
        relay_key=RelayKey(body.octets("relay_key", 0, KEY_SIZE)),
        rotates=body.boolean("rotates"),
        instance=InstanceId(body.octets("instance", ID_SIZE, ID_SIZE)),
        epoch=body.integer("epoch", 0, U64_MAX),
        session_id=SessionId(body.octets("id", ID_SIZE, ID_SIZE)),
        displaced=tuple(
            map(
                InstanceId,
                body.octet_strings("displaced", ID_SIZE, ID_SIZE, most=DISPLACED_KEPT),
            )
        ),
        session=body.map("session"),
        publications=tuple(map(_publish, body.maps("publications", most=MAX_PORTS))),
        visits=body.maps("visits", most=MAX_STREAMS),
    )
    body.finish()
    return agent


def _publish(body: Fields) -> Publish:
    publish = Publish(
        publication=body.integer("id", 1, MAX_STREAM),
        service=body.text("service", 1, MAX_TEXT),
        port=body.integer("port", 1, 65535),
    )
    body.finish()
    return publish
