"""What a session tells its owner about a received frame: at most one event a frame."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.wire.frame import CloseCode, Open, Publish, Published, Refused


@dataclass(slots=True)
class DataReceived:
    """Bytes for the local socket of `stream`.

    `data` points into what the link opened last: write or copy it before the link receives again.
    """

    stream: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class StreamOpened:
    stream: int
    open: Open


@dataclass(frozen=True, slots=True)
class StreamFinished:
    """FIN: no more data will come; half-close the local socket once all of it is written."""

    stream: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer takes no more data, and sends none.

    With `finished`, its own direction had ended by FIN before: go on delivering that, then call
    `Session.fin_delivered`. Otherwise drop what is undelivered and reset the local socket.
    """

    stream: int
    code: int
    finished: bool


@dataclass(frozen=True, slots=True)
class PublishRequested:
    """Relay only; answer with `Session.published` or `Session.refused`."""

    publish: Publish


@dataclass(frozen=True, slots=True)
class PublicationConfirmed:
    published: Published


@dataclass(frozen=True, slots=True)
class PublicationRefused:
    refused: Refused


@dataclass(frozen=True, slots=True)
class PublicationWithdrawn:
    """Relay only."""

    publication: int


@dataclass(frozen=True, slots=True)
class PeerClosing:
    code: CloseCode | None  # None: a code this version does not know


Event = (
    DataReceived
    | StreamOpened
    | StreamFinished
    | StreamReset
    | PublishRequested
    | PublicationConfirmed
    | PublicationRefused
    | PublicationWithdrawn
    | PeerClosing
)
