"""A session at the agent: what it publishes, and each visitor's way to a target."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from protocol.buffers import BufferPool
from protocol.errors import RefusalCode, ResetCode
from protocol.events import (
    Event,
    PeerClosing,
    PublicationConfirmed,
    PublicationRefused,
    StreamOpened,
)
from protocol.process.logs import event
from protocol.session import Session
from protocol.transport.endpoint import Endpoint
from protocol.transport.splice import Splice
from relay_agent.services import Service
from relay_agent.target import dial_target

log = logging.getLogger(__name__)

# A refusal that only a person can lift (a grant, another port) is asked about again this often.
REPUBLISH: Final = 60.0

Outcome = Callable[[Service, str | None], None]


class Serving:
    """Publishes `services` (each with a port) and splices their streams, in `nursery`."""

    def __init__(
        self,
        session: Session,
        services: Sequence[Service],
        *,
        pool: BufferPool,
        nursery: trio.Nursery,
        outcome: Outcome = lambda service, refusal: None,
    ) -> None:
        """`outcome` hears of each answer to a publication: None, or why it was refused."""
        self.endpoint = Endpoint(session, pool=pool, on_event=self._on_event)
        self._nursery = nursery
        self._outcome = outcome
        self._published: dict[int, Service] = {}
        for service in services:
            self._publish(service)

    def _publish(self, service: Service) -> None:
        self._published[self.endpoint.session.publish(service.name, service.port or 0)] = service

    def _on_event(self, happened: Event) -> None:
        if isinstance(happened, StreamOpened):
            service = self._published[happened.open.publication]
            # Joined at once: data may follow OPEN in the same record.
            splice = self.endpoint.join(happened.stream)
            self._nursery.start_soon(self._serve, splice, service, happened.open.source)
        elif isinstance(happened, PublicationConfirmed):
            service = self._published[happened.published.publication]
            event(log, logging.INFO, "service-up", service=service.name, port=service.port)
            self._outcome(service, None)
        elif isinstance(happened, PublicationRefused):
            self._refused(
                happened.refused.publication, happened.refused.code, happened.refused.reason
            )
        elif isinstance(happened, PeerClosing):
            event(log, logging.INFO, "relay-closing")

    def _refused(self, publication: int, code: int, reason: str) -> None:
        service = self._published[publication]
        event(
            log,
            logging.ERROR,
            "service-refused",
            service=service.name,
            port=service.port,
            reason=reason,
        )
        self._outcome(service, reason)
        if code != RefusalCode.PORT_BUSY:  # that one the relay tries again by itself
            self._nursery.start_soon(self._publish_again, publication)

    async def _publish_again(self, publication: int) -> None:
        await trio.sleep(REPUBLISH)
        service = self._published.pop(publication)
        self.endpoint.session.unpublish(publication)
        self._publish(service)
        self.endpoint.flush()

    async def _serve(self, splice: Splice, service: Service, source: tuple[str, int]) -> None:
        about = {"service": service.name, "source": source[0], "stream": splice.stream}
        try:
            sock = await dial_target(service.target, source[0])
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
        event(log, logging.INFO, "visitor-in", **about)
        await splice.run(sock)
        event(
            log, logging.INFO, "visitor-out", **about, received=splice.delivered, sent=splice.sent
        )
