"""Which publications live: one end asks, the other answers.

Ids are fresh, rising and never reused within a session, so an answer or an OPEN that crossed a
withdrawal on the way is told apart from one that names what never was.
"""

from __future__ import annotations

from typing import Final

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.session.events import (
    Event,
    PublicationConfirmed,
    PublicationRefused,
    PublicationWithdrawn,
    PublishRequested,
)
from protocol.wire.frame import Publish, Published, Refused, Unpublish

# Live at once: far above the 256 ports that a welcome can grant, and a bound on what a peer makes
# the relay remember.
MAX_LIVE: Final = 1024


class Publications:
    __slots__ = ("_last", "_live")

    def __init__(self) -> None:
        self._live: set[int] = set()
        self._last = 0

    # At the end that publishes

    def add(self, service: str, port: int) -> Publish:
        if len(self._live) >= MAX_LIVE:
            raise LocalProtocolError(f"more than {MAX_LIVE} publications")
        self._last += 1
        self._live.add(self._last)
        return Publish(publication=self._last, service=service, port=port)

    def withdraw(self, publication: int) -> Unpublish:
        if publication not in self._live:
            raise LocalProtocolError(f"publication {publication} is not live")
        self._live.remove(publication)
        return Unpublish(publication=publication)

    def is_live(self, publication: int) -> bool:
        """False for one withdrawn. Raises RemoteProtocolError for one that never was."""
        if not 0 < publication <= self._last:
            raise RemoteProtocolError(f"publication {publication} was never made")
        return publication in self._live

    def on_published(self, body: memoryview) -> Event | None:
        published = Published.decode(body)
        return PublicationConfirmed(published) if self.is_live(published.publication) else None

    def on_refused(self, body: memoryview) -> Event | None:
        refused = Refused.decode(body)
        return PublicationRefused(refused) if self.is_live(refused.publication) else None

    # At the end that opens streams

    def on_publish(self, body: memoryview) -> Event | None:
        publish = Publish.decode(body)
        if publish.publication <= self._last:
            raise RemoteProtocolError(f"publication {publish.publication} is not fresh")
        if len(self._live) >= MAX_LIVE:
            raise RemoteProtocolError(f"more than {MAX_LIVE} publications")
        self._last = publish.publication
        self._live.add(publish.publication)
        return PublishRequested(publish)

    def on_unpublish(self, body: memoryview) -> Event | None:
        withdrawn = Unpublish.decode(body).publication
        if not self.is_live(withdrawn):
            raise RemoteProtocolError(f"publication {withdrawn} is withdrawn twice")
        self._live.remove(withdrawn)
        return PublicationWithdrawn(withdrawn)
