"""The agent's session at its relay, which goes on over as many links as it takes.

    none ──a link begins one──▶ with a link ──the link is lost──▶ kept ──detached_keep──▶ none
                                     ▲                              │
                                     └───────a link resumes it──────┘

When the relay no longer has the session, the sockets of its streams are reset, and the next link
begins another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio

from protocol.errors import SessionLost
from protocol.process.logs import event
from protocol.session.replay import ReplayCap
from protocol.session.session import Session
from protocol.session.side import Side
from protocol.transport.endpoint import Endpoint
from protocol.transport.grace import wait_until
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import CloseCode
from protocol.wire.hello import Limits, Resume, Welcome
from protocol.wire.identifiers import SessionId
from relay_agent.services.publisher import Publisher

if TYPE_CHECKING:
    from relay_agent.config import AgentConfig
    from relay_agent.services.service import Service, ServiceStatus

log = logging.getLogger(__name__)

# For the goodbye to arrive: three round trips of a bad path, or one lost segment. Without it the
# relay would keep the session, and its visitors, for a return that is not planned.
DRAIN: Final = 2.0


class SessionHolder:
    """Holds at most one session, with the `Publisher` that serves it."""

    def __init__(
        self,
        config: AgentConfig,
        services: Sequence[Service],
        nursery: trio.Nursery,
        *,
        on_suspicion: Callable[[], None],
        on_expiry: Callable[[], None],
    ) -> None:
        """Streams and timers run in `nursery`.

        `on_suspicion` is called when the session's link may be dead, `on_expiry` after the session
        was ended because no link resumed it in time. Neither may wait or raise.
        """
        self._config = config
        self._services = services
        self._nursery = nursery
        self._on_suspicion = on_suspicion
        self._on_expiry = on_expiry
        self._id: SessionId | None = None
        self._publisher: Publisher | None = None
        self._keeping = trio.CancelScope()  # of a session without a link
        self._pool = BufferPool()
        self._replay_cap = ReplayCap(config.replay)

    @property
    def endpoint(self) -> Endpoint | None:
        """The session's; None while there is no session."""
        return None if self._publisher is None else self._publisher.endpoint

    @property
    def has_link(self) -> bool:
        return self._publisher is not None and self._publisher.endpoint.link is not None

    @property
    def has_streams(self) -> bool:
        return self._publisher is not None and bool(self._publisher.endpoint.session.open_streams)

    @property
    def limits(self) -> Limits:
        """What a hello tells the relay of a session that begins."""
        return self._config.limits()

    def services(self) -> list[ServiceStatus]:
        """The state of each publication, as `Publisher.services` has it."""
        return [] if self._publisher is None else self._publisher.services()

    def reconfigure(self, config: AgentConfig, services: Sequence[Service]) -> None:
        """Publish `services` from now on; limits are for the next session, all else at once."""
        self._config, self._services = config, services
        self._replay_cap.limit = config.replay
        if self._publisher is not None:
            self._publisher.change(services)

    # Over one link after the other

    def resume(self) -> Resume | None:
        """What to ask the relay to resume, once another link is certain to be made.

        The session gives up its link, if it has one: from here on nothing more is read from that.
        """
        if self._publisher is None or self._id is None:
            return None
        endpoint = self._publisher.endpoint
        endpoint.drop_link("another link takes over")
        return Resume(session=self._id, received=endpoint.session.received)

    def welcomed(self, welcome: Welcome) -> Publisher:
        """Go on with the session that the relay resumes, or begin the one that it has made.

        Raises SessionLost if the relay resumes a session that is not this one.
        """
        if welcome.resumed:
            if self._publisher is None or welcome.session != self._id:
                raise SessionLost("the relay resumed a session that is not ours")
            return self._publisher
        self.end()
        session = Session(
            side=Side.AGENT,
            options=self._config.session_options(self._replay_cap, self._pool),
            peer=welcome.limits,
        )
        self._id = welcome.session
        self._publisher = Publisher(
            session,
            self._services,
            max_streams=self._config.max_streams,
            pool=self._pool,
            nursery=self._nursery,
            on_suspicion=self._on_suspicion,
        )
        return self._publisher

    def keep(self) -> None:
        """While it has no link: end it after `detached_keep`, unless `stop_keeping` is called."""
        if self._publisher is not None:
            self._keeping = trio.CancelScope()
            self._nursery.start_soon(self._end_when_expired, self._keeping)

    def stop_keeping(self) -> None:
        self._keeping.cancel()

    async def _end_when_expired(self, keeping: trio.CancelScope) -> None:
        """As the relay does: a user who has waited this long at a dead shell has left."""
        with keeping:
            await wait_until(trio.current_time() + self._config.detached_keep)
        if not keeping.cancel_called:  # it may be in the very turn in which the time was up
            event(log, logging.WARNING, "session-expired")
            self.end()
            self._on_expiry()

    def end(self) -> None:
        """Reset the sockets of all streams; without a session nothing happens."""
        if self._publisher is not None:
            self._publisher.lose()
        self._publisher = self._id = None

    async def say_goodbye(self) -> None:
        """Tell the relay that this process ends, if there is a link to say it over."""
        endpoint = self.endpoint
        if endpoint is None or endpoint.link is None:
            return
        endpoint.session.close_link(CloseCode.GONE)
        endpoint.flush()
        await endpoint.link.drain(DRAIN)
