"""Under which keys and at which hosts a link is made, also while a key rotates or the relay moves.

The agent's own keys and their files are in `agent_keys`. Of the relay's keys there are one or two:

    one key ──told of a successor, and that saved──▶ both ──a link under the successor──▶ one key

A relay that tells of a successor has just proved that it holds the key that is trusted; nothing
else vouches for it. While there are both, the successor is tried first. Until it has worked once
the former key stays good: the relay may have been put back to an older state.

The same goes for further hosts: only a relay that has just proved its key can tell of them, and the
relay at such a host has to prove its key as well. They are tried after the hosts of the enrolment
until one of them has answered; from then on the hosts that answered last are tried first.
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

# The relay does not take that key of the agent, or not any more.
_OTHER_KEY: Final = (DenialCode.UNKNOWN_AGENT, DenialCode.REVOKED)
# At the hosts that did not answer last. Name, TCP and handshake take a second or two of a sound
# path, and meanwhile the relay may be back at the others.
ELSEWHERE_TIMEOUT: Final = 5.0


class RelayDialer:
    """Makes links to `relay` with `agent_keys`. Both may be replaced, for the next attempt."""

    def __init__(
        self,
        agent_keys: AgentKeys,
        relay: RelayIdentity,
        *,
        save_keys: Callable[[AgentKeys], None],
        save_relay: Callable[[RelayIdentity], None],
    ) -> None:
        """`save_keys` and `save_relay` are called to save what was learned for the next process.

        Either may raise StateError, which is logged.
        """
        self.agent_keys = agent_keys
        self.relay = relay
        self._save_keys = save_keys
        self._save_relay = save_relay
        self._unanswered_told = False  # that the relay does not answer under the successor
        self._unsaved = False  # that the successor has worked
        self._has_moved = False  # to one of the further hosts

    async def connect(self, hello: Callable[[], Hello]) -> tuple[Link, Welcome]:
        """Make one link, as `attach.attach`, under the newest of the relay's keys that it answers.

        Raises LinkDenied or LinkLost.
        """
        attached = await self._at_any_host(hello)
        if self._unsaved:
            self._unsaved = not self._try_to_save(self.relay)
        return attached

    async def _at_any_host(self, hello: Callable[[], Hello]) -> tuple[Link, Welcome]:
        hosts = [self.relay.hosts, self.relay.further]
        if self._has_moved and self.relay.further:
            hosts.reverse()
        first, elsewhere = hosts
        try:
            return await self._under_newest(first, hello, ATTACH_TIMEOUT)
        except LinkLost as exc:
            if not elsewhere:
                raise
            try:
                attached = await self._under_newest(elsewhere, hello, ELSEWHERE_TIMEOUT)
            except LinkLost as also:
                raise LinkLost(f"{exc}; {also}") from also
        self._has_moved = not self._has_moved
        return attached

    async def _under_newest(
        self, hosts: Sequence[HostPort], hello: Callable[[], Hello], patience: float
    ) -> tuple[Link, Welcome]:
        """Under the relay's successor, if there is one, or else under the key before it."""
        there = replace(self.relay, hosts=hosts)
        if there.successor is not None:
            newest = replace(there, key=there.successor, successor=None)
            try:
                attached = await self._under_own_keys(newest, hello, patience)
            except NoAnswer as exc:
                # Once a process: it may go on like this for days.
                level = logging.DEBUG if self._unanswered_told else logging.WARNING
                event(log, level, "relay-key-unanswered", reason=str(exc))
                self._unanswered_told = True
            else:
                # This process never goes back to the former key, even if this cannot be saved: it
                # is then saved with one of the next links. The next process would begin with both
                # keys again, and with this one first.
                self.relay = replace(self.relay, key=newest.key, successor=None)
                self._unsaved = True
                return attached
        return await self._under_own_keys(there, hello, patience)

    async def _under_own_keys(
        self, relay: RelayIdentity, hello: Callable[[], Hello], patience: float
    ) -> tuple[Link, Welcome]:
        """Under the first of this agent's keys that the relay takes."""
        own = self.agent_keys

        def vouching() -> Hello:
            return replace(hello(), successor=own.public)

        *_, last = in_order = own.in_order()
        for static in in_order:
            made = hello if static is own.newest else vouching
            try:
                link, welcome = await attach(relay, static=static, hello=made, patience=patience)
                break
            except LinkDenied as exc:
                if exc.code not in _OTHER_KEY or static is last:
                    raise
        if static is own.newest or welcome.agent_key == own.public:
            self._note_accepted(own)
        return link, welcome

    def _note_accepted(self, own: AgentKeys) -> None:
        """The relay knows the newest of `own`, which may have been replaced meanwhile."""
        if own.accepted or self.agent_keys is not own:
            return
        # Also if it cannot be saved: then the next process finds out again.
        self.agent_keys = replace(own, accepted=True)
        event(log, logging.INFO, "agent-key-rotated", public=own.public.hex())
        try:
            self._save_keys(self.agent_keys)
        except StateError as exc:
            event(log, logging.ERROR, "agent-key-not-saved", reason=str(exc))

    def learn_successor(self, welcome: Welcome) -> bool:
        """Save a key that the relay tells of, and use it from now on. False if it is no news.

        Also False if it cannot be saved: then the key is told again with the next link.
        """
        successor = welcome.successor
        if successor is None or successor in (self.relay.key, self.relay.successor):
            return False
        told = replace(self.relay, successor=successor)
        if not self._try_to_save(told):
            return False
        self.relay = told
        event(log, logging.INFO, "relay-key-rotated", public=successor.hex())
        return True

    def learn_hosts(self, welcome: Welcome) -> None:
        """Keep and save at which further hosts the relay says that it can be found."""
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
            self._save_relay(self.relay)
        except StateError as exc:
            event(log, logging.ERROR, "relay-hosts-not-saved", reason=str(exc))
        else:
            event(log, logging.INFO, "relay-hosts-told", hosts=[str(host) for host in further])

    def _try_to_save(self, relay: RelayIdentity) -> bool:
        try:
            self._save_relay(relay)
        except StateError as exc:
            event(log, logging.ERROR, "relay-key-not-saved", reason=str(exc))
            return False
        return True
