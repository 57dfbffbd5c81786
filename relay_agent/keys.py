"""Which key proves this agent, and which the relay, while the relay rotates from one to the next.

    one key ──told of a successor, and that saved──▶ both ──a link under the successor──▶ one key

Who tells of a successor has just proved to hold the key that we trust; nothing else vouches for it.
While there are both, the successor is tried first. Until it has worked once the old key stays good:
the relay may have been put back to an older state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from protocol.errors import NoAnswer
from protocol.hello import Hello, Welcome
from protocol.noise import StaticKey
from protocol.process.logs import event
from protocol.process.state import StateError
from protocol.transport.link import Link
from relay_agent.attachment import Relay, attach

log = logging.getLogger(__name__)


class Keys:
    def __init__(
        self, static: StaticKey, relay: Relay, *, remember: Callable[[Relay], None]
    ) -> None:
        """`static` is this agent's. `remember` saves `relay`; it may raise StateError."""
        self._static = static
        self.relay = relay
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
                attached = await attach(newest, static=self._static, hello=hello)
            except NoAnswer as exc:
                # Once a process: it may go on like this for days.
                level = logging.DEBUG if self._told else logging.WARNING
                event(log, level, "relay-key-unanswered", reason=str(exc))
                self._told = True
            else:
                # Never back to the former one, even if this cannot be saved: then the next process
                # begins with both again, and with this one first, and we try again with each link.
                self.relay, self._unsaved = newest, True
                return attached
        return await attach(self.relay, static=self._static, hello=hello)

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
