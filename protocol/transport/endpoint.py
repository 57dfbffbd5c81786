"""One side of a session under trio: the session, its current link, its spliced sockets.

The only place that knows both what a session is and what a link is made of. Links come and go
(`carry`), splices go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from protocol.errors import ResetCode
from protocol.session.events import Event, StreamFinished, StreamReset
from protocol.session.session import Session
from protocol.transport.link import Link
from protocol.transport.splice import Splice
from protocol.transport.status import StreamAbout, StreamStatus
from protocol.wire.buffers import BufferPool

_UNKNOWN: Final[StreamAbout] = {}


class Endpoint:
    def __init__(
        self,
        session: Session,
        *,
        pool: BufferPool,
        on_event: Callable[[Event], None],
        on_suspicion: Callable[[], None] = lambda: None,
    ) -> None:
        """Both callbacks return at once.

        `on_event` takes each event that is not about an open stream; `on_suspicion` hears that the
        link may be dead.
        """
        self.session = session
        self._pool = pool
        self.link: Link | None = None
        self.splices: dict[int, Splice] = {}
        self._on_event = on_event
        self._on_suspicion = on_suspicion

    def join(self, stream: int, about: StreamAbout = _UNKNOWN) -> Splice:
        """A splice for `stream`; run it with a socket, or `refuse` the stream."""
        splice = Splice(
            self.session,
            stream,
            pool=self._pool,
            flush=self.flush,
            over=self.forget,
            about=about,
        )
        self.splices[stream] = splice
        return splice

    def refuse(self, splice: Splice, code: ResetCode) -> None:
        """End a stream whose socket could not be had."""
        self.forget(splice)
        self.session.reset(splice.stream, code)
        self.flush()

    def forget(self, splice: Splice) -> None:
        self.splices.pop(splice.stream, None)
        self.flush()

    async def carry(self, link: Link, peer_received: int) -> None:
        """Attach `link` and carry the session over it until it ends.

        Always raises: LinkLost, after which another link may carry on, or SessionLost.
        """
        self.session.attach(peer_received, trio.current_time())
        self.link = link
        try:
            await link.run(
                self.session,
                deliver=self._deliver,
                deliver_data=self._deliver_data,
                wake=self._wake,
                suspect=self._on_suspicion,
            )
        finally:
            if self.link is link:
                self._detach()

    def drop_link(self, reason: str) -> None:
        """Stop using the current link now; from here on `session.received` is fixed."""
        if self.link is not None:
            self.link.drop(reason)
            self._detach()

    def lose(self) -> None:
        """The session is over: every socket is reset."""
        self.drop_link("the session is over")
        self.session.discard()
        for splice in list(self.splices.values()):
            splice.on_reset(ResetCode.SESSION_LOST, finished=splice.inbound_finished)

    def probe(self) -> None:
        """Ask for a sign of life at once, if there is a link."""
        if self.link is not None:
            self.link.probe()

    @property
    def in_doubt(self) -> bool:
        """Whether there is a link that has owed us a sign of life for too long."""
        return self.link is not None and self.session.liveness.suspected

    async def shows_life(self, seconds: float) -> bool:
        """Whether a byte comes over the current link within `seconds` of asking for one."""
        return self.link is not None and await self.link.shows_life(seconds)

    @property
    def rtt(self) -> float | None:
        """The link's round trip in seconds, as far as there is a link and it is known."""
        if self.link is None:
            return None
        liveness = self.session.liveness
        return liveness.rtt or liveness.min_rtt or None

    def streams(self) -> list[StreamStatus]:
        """What goes on in each spliced stream: bytes from the socket, and to it."""
        now = trio.current_time()
        return [
            {
                "stream": splice.stream,
                **splice.about,
                "age": round(now - splice.began, 1),
                "from_socket": splice.sent,
                "to_socket": splice.delivered,
            }
            for splice in self.splices.values()
        ]

    def flush(self) -> None:
        """Send what can be sent now."""
        if self.link is not None:
            self.link.flush()
            self._wake()

    def _detach(self) -> None:
        self.link = None
        self.session.detach()
        self._wake()

    def _wake(self) -> None:
        for stream in self.session.take_ready():
            splice = self.splices.get(stream)
            if splice is not None:
                splice.on_ready()

    def _deliver_data(self, stream: int, data: list[memoryview]) -> None:
        splice = self.splices.get(stream)
        if splice is not None:
            splice.on_data(data)

    def _deliver(self, event: Event) -> None:
        if isinstance(event, StreamFinished):
            splice = self.splices.get(event.stream)
            if splice is not None:
                splice.on_fin()
        elif isinstance(event, StreamReset):
            splice = self.splices.get(event.stream)
            if splice is not None:
                splice.on_reset(event.code, finished=event.finished)
        else:
            self._on_event(event)
