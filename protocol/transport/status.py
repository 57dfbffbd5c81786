"""What a splice tells `status` about its stream, as it stands in JSON."""

from __future__ import annotations

from typing import TypedDict


class StreamAbout(TypedDict, total=False):
    """What the owner of a stream says about it; only a relay names the agent and the port."""

    agent: str
    service: str
    source: str  # IP address of the visitor
    port: int  # the public one


class StreamStatus(StreamAbout):
    stream: int  # its id in the session
    age: float  # seconds
    from_socket: int  # bytes read from the socket here: the visitor's, or the target's
    to_socket: int  # bytes written to it
