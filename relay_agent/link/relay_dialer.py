"""Which key proves this agent, which the relay, and where that is: also while it rotates or moves.

The agent's own keys and their files are in `own`. The relay's:

    one key ──told of a successor, and that saved──▶ both ──a link under the successor──▶ one key

Who tells of a successor has just proved to hold the key that we trust; nothing else vouches for it.
While there are both, the successor is tried first. Until it has worked once the old key stays good:
the relay may have been put back to an older state.

The same goes for further hosts: only a relay that has just proved its key can tell of them, and
whoever answers there has to prove it as well. They are tried after those of the enrolment, until
they have answered; from then on whichever answered last is tried first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from protocol.errors import DenialCode, LinkDenied, LinkLost, NoAnswer
from protocol.process.address import HostPort, parse_host_port
from protocol.process.logs import event
from protocol.process.state import StateError
from protocol.transport.link import Link
from protocol.wire.hello import Hello, Welcome
from relay_agent.identity.agent_keys import AgentKeys
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link.attach import ATTACH_TIMEOUT, attach

log = logging.getLogger(__name__)

# The relay does not take that key of ours, or not any more.
_OTHER_KEY: Final = (DenialCode.UNKNOWN_AGENT, DenialCode.REVOKED)
# Where the relay did not answer last. Name, TCP and handshake take a second or two of a sound path,
# and meanwhile it may be back in the other place.
ELSEWHERE_TIMEOUT: Final = 5.0


class RelayDialer:
    def __init__(
        self,
        own: AgentKeys,
        relay: RelayIdentity,
        *,
        remember: Callable[[RelayIdentity], None],
        remember_own: Callable[[AgentKeys], None],
    ) -> None:
        """`remember` saves `relay`, `remember_own` saves `own`; either may raise StateError."""
        self.own = own
        self.relay = relay
        self._remember_own = remember_own
        self._remember = remember
        self._told = False  # that the successor is not answered
        self._unsaved = False  # that the successor has worked
        self._has_moved = False  # to one of the further hosts

    async def attach(self, hello: Callable[[], Hello]) -> tuple[Link, Welcome]:
        """As `attachment.attach`, under the relay's newest key that answers, wherever it is."""
        attached = await self._wherever(hello)
        if self._unsaved:
            self._unsaved = not self._save(self.relay)
        return attached

    async def _wherever(self, hello: Callable[[], Hello]) -> tuple[Link, Welcome]:
        places = [self.relay.hosts, self.relay.further]
        if self._has_moved and self.relay.further:
            places.reverse()
        try:
            return await self._under_newest(places[0], hello, ATTACH_TIMEOUT)
        except LinkLost as exc:
            if not places[1]:
                raise
            try:
                attached = await self._under_newest(places[1], hello, ELSEWHERE_TIMEOUT)
            except LinkLost as also:
                raise LinkLost(f"{exc}; {also}") from also
        self._has_moved = not self._has_moved
        return attached

    async def _under_newest(
        self, hosts: Sequence[HostPort], hello: Callable[[], Hello], patience: float
    ) -> tuple[Link, Welcome]:
        there = replace(self.relay, hosts=hosts)
        if there.successor is not None:
            newest = replace(there, key=there.successor, successor=None)
            try:
                attached = await self._attach(newest, hello, patience)
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
        return await self._attach(there, hello, patience)

    async def _attach(
        self, relay: RelayIdentity, hello: Callable[[], Hello], patience: float
    ) -> tuple[Link, Welcome]:
        """Under the first key of ours that the relay takes."""
        own = self.own

        def vouching() -> Hello:
            return replace(hello(), successor=own.newest.public)

        *_, last = in_order = own.in_order()
        for static in in_order:
            made = hello if static is own.newest else vouching
            try:
                link, welcome = await attach(relay, static=static, hello=made, patience=patience)
                break
            except LinkDenied as exc:
                if exc.code not in _OTHER_KEY or static is last:
                    raise
        if static is own.newest or welcome.agent_key == own.newest.public:
            self._accepted(own)
        return link, welcome

    def _accepted(self, own: AgentKeys) -> None:
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

    def hear(self, welcome: Welcome) -> None:
        """Keep where else the relay says that it can be found."""
        if welcome.hosts is None:
            return
        try:
            further = tuple(parse_host_port(text) for text in welcome.hosts)
        except ValueError as exc:
            event(log, logging.WARNING, "relay-hosts-unusable", reason=str(exc))
            return
        if further == tuple(self.relay.further):
            return
        # Also if it cannot be saved: then it is told again with the next link.
        self.relay = replace(self.relay, further=further)
        try:
            self._remember(self.relay)
        except StateError as exc:
            event(log, logging.ERROR, "relay-hosts-not-saved", reason=str(exc))
        else:
            event(log, logging.INFO, "relay-hosts-told", hosts=[str(host) for host in further])

    def _save(self, relay: RelayIdentity) -> bool:
        try:
            self._remember(relay)
        except StateError as exc:
            event(log, logging.ERROR, "relay-key-not-saved", reason=str(exc))
            return False
        return True
