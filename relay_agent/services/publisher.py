"""What a session of the agent publishes, and the connection of each visitor to a target."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import trio

from protocol.errors import RefusalCode, ResetCode
from protocol.process.logs import event
from protocol.session.events import (
    Event,
    PeerClosing,
    PublicationConfirmed,
    PublicationRefused,
    StreamOpened,
)
from protocol.session.session import Session
from protocol.transport.endpoint import Endpoint
from protocol.transport.sockets import send_all
from protocol.transport.splice import Splice
from protocol.transport.status import StreamAbout
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import CloseCode, Refused
from protocol.wire.identifiers import SocketAddress
from relay_agent.services.proxy_protocol import header
from relay_agent.services.service import Service, ServiceStatus
from relay_agent.services.target import dial_target

log = logging.getLogger(__name__)

# How often a publication is tried again that was refused for what only a person can change, such as
# a missing grant.
REPUBLISH: Final = 60.0

Outcome = Callable[[Service, str | None], None]


class Publisher:
    """Publishes `services` (each with a port) and splices their streams, in `nursery`."""

    def __init__(
        self,
        session: Session,
        services: Sequence[Service],
        *,
        max_streams: int,
        pool: BufferPool,
        nursery: trio.Nursery,
        outcome: Outcome = lambda service, refusal: None,
        on_suspicion: Callable[[], None] = lambda: None,
    ) -> None:
        """`outcome` is called with each answer to a publication: None, or why it was refused.

        `on_suspicion` is called when the link may be dead. Neither may wait or raise.
        """
        self.endpoint = Endpoint(
            session, pool=pool, on_event=self._on_event, on_suspicion=on_suspicion
        )
        # A stream that has ended may leave a socket that is still being emptied or dialled. There
        # may be as many of those as open streams: a visitor who comes and goes in quick succession
        # must not use up this process's descriptors.
        self._most_sockets = 2 * max_streams
        self._nursery = nursery
        self._outcome = outcome
        self.relay_gone = False  # the relay has said that it ends the session, not only the link
        self._published: dict[int, Service] = {}
        # By publication: the last answer (None or why it was refused), so that a relay that repeats
        # itself fills no log; and the wait until a refused one is tried again.
        self._answers: dict[int, str | None] = {}
        self._again: dict[int, trio.CancelScope] = {}
        for service in services:
            self._publish(service)

    def lose(self) -> None:
        """The session is over: every socket is reset, and nothing is published any more."""
        for scope in self._again.values():
            scope.cancel()
        self.endpoint.lose()

    def _on_event(self, happened: Event) -> None:
        if isinstance(happened, StreamOpened):
            self._opened(happened)
        elif isinstance(happened, PublicationConfirmed):
            self._confirmed(happened.published.publication)
        elif isinstance(happened, PublicationRefused):
            self._refused(happened.refused)
        elif isinstance(happened, PeerClosing):
            self.relay_gone = happened.code is CloseCode.GONE
            event(log, logging.INFO, "relay-closing", restarting=not self.relay_gone)

    def services(self) -> list[ServiceStatus]:
        """The state of each publication, for JSON."""
        return [
            {
                "service": service.name,
                "target": str(service.target),
                "port": service.port,
                "state": _state_of(self._answers, publication),
                "reason": self._answers.get(publication),
            }
            for publication, service in self._published.items()
        ]

    # Publications

    def change(self, services: Sequence[Service]) -> None:
        """Serve these from now on. Streams go on, also those of a service that is withdrawn."""
        wanted = {(one.name, one.port): one for one in services}
        for publication, service in list(self._published.items()):
            same = wanted.pop((service.name, service.port), None)
            if same is None:
                self._withdraw(publication)
            else:
                self._published[publication] = same  # perhaps at another target
        # After the withdrawals, since a port may go from one service to another.
        for service in wanted.values():
            self._publish(service)
        self.endpoint.flush()

    def _withdraw(self, publication: int) -> None:
        waiting = self._again.pop(publication, None)
        if waiting is not None:
            waiting.cancel()
        self._answers.pop(publication, None)
        service = self._published.pop(publication)
        self.endpoint.session.unpublish(publication)
        event(log, logging.INFO, "service-withdrawn", service=service.name, port=service.port)

    def _publish(self, service: Service) -> None:
        self._published[self.endpoint.session.publish(service.name, service.port or 0)] = service

    def _confirmed(self, publication: int) -> None:
        waiting = self._again.pop(publication, None)
        if waiting is not None:
            waiting.cancel()
        if self._is_news(publication, None):
            service = self._published[publication]
            event(log, logging.INFO, "service-up", service=service.name, port=service.port)
            self._outcome(service, None)

    def _refused(self, refused: Refused) -> None:
        publication = refused.publication
        # The relay itself tries a busy port again, and then sends PUBLISHED.
        if refused.code != RefusalCode.PORT_BUSY and publication not in self._again:
            waiting = self._again[publication] = trio.CancelScope()
            self._nursery.start_soon(self._publish_again, publication, waiting)
        if self._is_news(publication, refused.reason):
            service = self._published[publication]
            event(
                log,
                logging.ERROR,
                "service-refused",
                service=service.name,
                port=service.port,
                reason=refused.reason,
            )
            self._outcome(service, refused.reason)

    def _is_news(self, publication: int, answer: str | None) -> bool:
        if publication in self._answers and self._answers[publication] == answer:
            return False
        self._answers[publication] = answer
        return True

    async def _publish_again(self, publication: int, waiting: trio.CancelScope) -> None:
        with waiting:
            await trio.sleep(REPUBLISH)
        if waiting.cancel_called:  # it may be in the very turn in which the time was up
            return
        del self._again[publication], self._answers[publication]
        self.endpoint.session.unpublish(publication)
        self._publish(self._published.pop(publication))
        self.endpoint.flush()

    # Streams

    def _opened(self, opened: StreamOpened) -> None:
        # The splice is joined at once: data may follow OPEN in the same record.
        service = self._published[opened.open.publication]
        about: StreamAbout = {"service": service.name, "source": opened.open.source[0]}
        splice = self.endpoint.join(opened.stream, about)
        if len(self.endpoint.splices) > self._most_sockets:
            self.endpoint.refuse(splice, ResetCode.REFUSED)
            return
        self._nursery.start_soon(self._serve, splice, service, opened.open.source)

    async def _serve(self, splice: Splice, service: Service, source: SocketAddress) -> None:
        about = {**splice.about, "stream": splice.stream}
        sock: socket.socket | None = None
        try:
            with splice.dialling:
                sock = await _connect(service, source)
        except OSError as exc:
            event(
                log,
                logging.ERROR,
                "target-unreachable",
                **about,
                target=str(service.target),
                reason=exc.strerror or str(exc),
            )
            self.endpoint.refuse(splice, ResetCode.TARGET_UNREACHABLE)
            return
        if sock is None:
            event(log, logging.INFO, "visitor-left", **about)
            self.endpoint.forget(splice)
            return
        event(log, logging.INFO, "visitor-in", **about)
        await splice.run(sock)
        event(
            log,
            logging.INFO,
            "visitor-out",
            **about,
            received=splice.delivered,
            sent=splice.sent,
            reset=splice.reset_by_peer,
        )


async def _connect(service: Service, source: SocketAddress) -> socket.socket:
    """A socket to the target, which is told its visitor's address if it expects that.

    Raises OSError.
    """
    sock = await dial_target(service.target, source[0])
    if service.proxy_protocol is None:
        return sock
    try:
        # The first bytes of a connection, at most 107: the kernel takes them at once.
        await send_all(sock, header(service.proxy_protocol, source, service.port or 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _state_of(
    answers: Mapping[int, str | None], publication: int
) -> Literal["asked", "open", "refused"]:
    if publication not in answers:
        return "asked"
    return "open" if answers[publication] is None else "refused"
