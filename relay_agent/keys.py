"""Which key proves this agent, and which the relay, while either rotates from one to the next.

The agent's own keys and their files are in `own`. The relay's:

    one key ──told of a successor, and that saved──▶ both ──a link under the successor──▶ one key

Who tells of a successor has just proved to hold the key that we trust; nothing else vouches for it.
While there are both, the successor is tried first. Until it has worked once the old key stays good:
the relay may have been put back to an older state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from protocol.errors import DenialCode, LinkDenied, NoAnswer
from protocol.hello import Hello, Welcome
from protocol.process.logs import event
from protocol.process.state import StateError
from protocol.transport.link import Link
from relay_agent.attachment import Relay, attach
from relay_agent.own import OwnKeys

log = logging.getLogger(__name__)

# The relay does not take that key of ours, or not any more.
_OTHER_KEY: Final = (DenialCode.UNKNOWN_AGENT, DenialCode.REVOKED)


class Keys:
    def __init__(
        self,
        own: OwnKeys,
        relay: Relay,
        *,
        remember: Callable[[Relay], None],
        remember_own: Callable[[OwnKeys], None],
    ) -> None:
        """`remember` saves `relay`, `remember_own` saves `own`; either may raise StateError."""
        self.own = own
        self.relay = relay
        self._remember_own = remember_own
        self._remember = remember
        self._told = False  # that the successor is not answered
        self._unsaved = False  # that the successor has worked

    async def attach(self, hello: Callable[[], Hello]) -> tuple[Link, Welcome]:
        """As `attachment.attach`, under the relay's newest key that answers."""
        attached = await self._under_newest(hello)
        if self._unsaved:
            self._unsaved = not self._save(self.relay)
        return attached

    async def _under_newest(self, hello: Callable[[], Hello]) -> tuple[Link, Welcome]:
        if self.relay.successor is not None:
            newest = replace(self.relay, key=self.relay.successor, successor=None)
            try:
                attached = await self._attach(newest, hello)
            except NoAnswer as exc:
                # Once a process: it may go on like this for days.
                level = logging.DEBUG if self._told else logging.WARNING
                event(log, level, "relay-key-unanswered", reason=str(exc))
                self._told = True
            else:
                # Never back to the former one, even if this cannot be saved: then the next process
                # begins with both again, and with this one first, and we try again with each link.
                self.relay = replace(self.relay, key=newest.key, successor=None)
                self._unsaved = True
                return attached
        return await self._attach(self.relay, hello)

    async def _attach(self, relay: Relay, hello: Callable[[], Hello]) -> tuple[Link, Welcome]:
        """Under the key of ours that the relay is known to take, or else under the other one."""
        own = self.own
        if own.former is None:
            return await attach(relay, static=own.newest, hello=hello)

        def vouching() -> Hello:
            return replace(hello(), successor=own.newest.public)

        newest, former = (own.newest, hello), (own.former, vouching)
        first, second = (newest, former) if own.accepted else (former, newest)
        static = first[0]
        try:
            link, welcome = await attach(relay, static=static, hello=first[1])
        except LinkDenied as exc:
            if exc.code not in _OTHER_KEY:
                raise
            static = second[0]
            link, welcome = await attach(relay, static=static, hello=second[1])
        if static is own.newest or welcome.agent_key == own.newest.public:
            self._accepted(own)
        return link, welcome

    def _accepted(self, own: OwnKeys) -> None:
        """The relay knows the newest of `own`, which may have been replaced meanwhile."""
        if own.accepted or self.own is not own:
            return
        # Also if it cannot be saved: then the next process finds out again.
        self.own = replace(own, accepted=True)
        event(log, logging.INFO, "agent-key-rotated", public=own.newest.public.hex())
        try:
            self._remember_own(self.own)
        except StateError as exc:
            event(log, logging.ERROR, "agent-key-not-saved", reason=str(exc))

    def follow(self, welcome: Welcome) -> bool:
        """Whether the relay told us of a key that is news. It is saved, and used from now on."""
        successor = welcome.successor
        if successor is None or successor in (self.relay.key, self.relay.successor):
            return False
        told = replace(self.relay, successor=successor)
        if not self._save(told):
            return False
        self.relay = told
        event(log, logging.INFO, "relay-key-rotated", public=successor.hex())
        return True

    def _save(self, relay: Relay) -> bool:
        try:
            self._remember(relay)
        except StateError as exc:
            event(log, logging.ERROR, "relay-key-not-saved", reason=str(exc))
            return False
        return True
