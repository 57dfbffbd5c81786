"""Who may attach: the decision alone, without sockets or waiting.

Asked only after message 3 was accepted and the key is enrolled and not revoked; nothing less may
displace a live link.

    ============================================  =====================  ==============
    arrives                                       while                  then
    ============================================  =====================  ==============
    same instance, higher epoch, known session    attached or detached   RESUME
    same instance, no or unknown session          any                    RENEW
    same instance, epoch not higher               any                    STALE
    other instance                                no session, detached   RENEW
    other instance                                attached               PROBE
    displaced instance                            winner's session is    DUPLICATE
    ============================================  =====================  ==============

PROBE: ask the attached link for a sign of life; a byte within two seconds makes the newcomer a
DUPLICATE, silence means RENEW.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from protocol.wire.hello import Hello
from protocol.wire.identifiers import InstanceId, SessionId

# Displaced instances remembered: each is a process that once held the key while another came. More
# than a few means copied keys in a number that the log has long told of.
DISPLACED_KEPT = 16
_NO_INSTANCE: Final = InstanceId(b"")


class Decision(enum.Enum):
    RESUME = enum.auto()  # the session goes on over the new link
    RENEW = enum.auto()  # a new session; the old one, if any, is reset
    PROBE = enum.auto()
    DUPLICATE = enum.auto()  # refused: another process with this key is alive
    STALE = enum.auto()  # refused: a newer link of this very process has come first


@dataclass(slots=True)
class Ownership:
    """Which process holds an agent's key now, and which it displaced."""

    instance: InstanceId = _NO_INSTANCE
    epoch: int = -1
    session: SessionId | None = None  # id of the session it holds
    attached: bool = False
    displaced: deque[InstanceId] = field(default_factory=lambda: deque(maxlen=DISPLACED_KEPT))

    def decide(self, hello: Hello) -> Decision:
        if self.session is None:
            return Decision.RENEW
        if hello.instance == self.instance:
            if hello.epoch <= self.epoch:
                return Decision.STALE
            known = hello.resume is not None and hello.resume.session == self.session
            return Decision.RESUME if known else Decision.RENEW
        if hello.instance in self.displaced:
            return Decision.DUPLICATE
        return Decision.PROBE if self.attached else Decision.RENEW

    def accept(self, hello: Hello, session: SessionId) -> None:
        """`hello`'s process holds `session` from now on, in place of any other process."""
        if self.session is not None and hello.instance != self.instance:
            self.displaced.append(self.instance)
        self.instance, self.epoch, self.session = hello.instance, hello.epoch, session

    def end(self) -> None:
        """The session is over, and no process holds it: those it displaced may come back."""
        self.session = None
        self.attached = False
        self.displaced.clear()
