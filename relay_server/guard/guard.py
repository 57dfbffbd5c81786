"""Which visitors may occupy the SSH server of one service before they have logged in. Pure.

An SSH server bears few clients that have not logged in: dropbear accepts five from one address and
thirty in all, OpenSSH drops connections at random from ten on (`MaxStartups`). So the relay admits
few *unauthenticated* visitors at a time; each of them holds a place. The others wait in line at the
relay, and nothing is read from them. A visitor is unauthenticated until one of these holds, and
*established* from then on:

    its SSH server was seen to let it in (ssh_login.py)
    it has sent or received 16 KiB; password guessing never gets that far
    it has been there for 300 s; dropbear itself ends an unauthenticated client by then

Only unauthenticated visitors are ever evicted. The decision is made by the *penalty* of the source
(source_penalties.py): how many visitors came from it lately and did not log in. A login takes its
visitor off again. So a person who logs in has a penalty of one or two, and the source of a bot has
dozens within seconds, since evicted visitors stay counted. Penalties are compared by *level*, each
of which spans a factor of two, since a small difference says nothing.

    event                  what the guard does
    =====================  ====================================================================
    a place is free        The best penalty level in line gets it; of equals the first to come.
    all places are taken   The best in line displaces a visitor whose source is penalized and two
                           levels worse; or one that is overdue (it has used up its time to log
                           in, or to begin) and not two levels better. Of several candidates the
                           worst level goes, then an overdue one, then the one that has sent the
                           least, then the oldest.
    a visitor has waited   It displaces the worst unauthenticated visitor, in that order and
    for `patience`         however good that one is, if its own source has no place.
    the line is too long   The worst level goes; of equals one whose source has a place, then the
                           oldest.

The time that a visitor is overdue counts like a penalty, so that no place is held for long. A bad
penalty costs a wait at worst: a source without a place is refused, while another has one, only if
more visitors are in line than may be.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from relay_server.guard.source_penalties import (
    MAX_RESTING,
    SourceRecord,
    penalty_level,
    remembered_penalty,
)
from relay_server.net.source import source_of
from relay_server.net.source_table import SourceTable

# Either way. Ten password guesses come to 3 KiB; with a legal notice and the largest keys, to 8.
ESTABLISHED_BYTES: Final = 16 * 1024
# AUTH_TIMEOUT of dropbear; LoginGraceTime of OpenSSH is 120 s.
ESTABLISHED_SECONDS: Final = 300.0

# In seconds from admission to the login: a login by key at a slow router that serves several at
# once, over a bad path, without a person in between. A penalized source gets what suffices on a
# fast path.
LOGIN_GRACE: Final = 5.0
PENALIZED_LOGIN_GRACE: Final = 2.0
# In seconds from admission to BEGUN_BYTES. An SSH client sends its identification at once, and a
# KEXINIT of a KiB as soon as it has the server's identification, a round trip to the router later.
SILENT_GRACE: Final = 0.75
BEGUN_BYTES: Final = 256
# "SSH-2.0-". Fewer bytes count as none; otherwise one byte would put a bot before a newcomer.
IDENT_BYTES: Final = 8

# Sources from this level on, a penalty of eight, are penalized: that is twice as many visitors as
# one source may have as unauthenticated ones.
PENALIZED_LEVEL: Final = 4
# Sources are treated differently if they are so many levels apart.
LEVELS_APART: Final = 2

# In seconds. A login that lasted so long was a session with work in it.
LONG_SESSION: Final = 60.0


class Ending(enum.Enum):
    OURS = enum.auto()  # the agent was away, the target was down, or the relay stopped
    THEIRS = enum.auto()  # the visitor or its SSH server ended it


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """How many visitors at once; 0 sets no bound. rules.py has the reasons."""

    per_source: int  # established ones included, those in line not
    unauthenticated_per_source: int
    unauthenticated: int
    waiting: int

    @property
    def tracks_logins(self) -> bool:
        """False if unauthenticated visitors have no bound: then all count as established."""
        return bool(self.unauthenticated_per_source or self.unauthenticated)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a visitor and its SSH server have said so far."""

    sent: int = 0  # bytes from the visitor
    received: int = 0  # bytes to the visitor
    login_seen: bool = False  # the server was seen to let the visitor in

    @property
    def logged_in(self) -> bool:
        return self.login_seen or max(self.sent, self.received) >= ESTABLISHED_BYTES


def is_established(traffic: Traffic, age: float) -> bool:
    return traffic.logged_in or age >= ESTABLISHED_SECONDS


class Standing(enum.Enum):
    WAITING = enum.auto()  # in line
    UNAUTHENTICATED = enum.auto()  # has a place
    ESTABLISHED = enum.auto()
    GONE = enum.auto()  # evicted, or ended by itself


@dataclass(slots=True, eq=False)
class Visitor:
    arrived: float
    source: SourceRecord
    traffic: Callable[[], Traffic]
    evict: Callable[[], None]
    standing: Standing = field(default=Standing.WAITING, init=False)
    admitted: float = field(default=0.0, init=False)  # when it got its place
    _counts_as_attempt: bool = field(default=True, init=False)

    def overdue(self, now: float) -> float:
        """Seconds beyond its time to log in, or to begin; negative while it has time left."""
        if self.standing is Standing.WAITING:
            return 0.0
        grace = SILENT_GRACE
        if self.traffic().sent >= BEGUN_BYTES:
            level = penalty_level(self.source.penalty_at(now))
            grace = PENALIZED_LOGIN_GRACE if level >= PENALIZED_LEVEL else LOGIN_GRACE
        return now - self.admitted - grace

    def level_at(self, now: float) -> int:
        """The penalty level of its source; the time it is overdue counts like a penalty."""
        return penalty_level(self.source.penalty_at(now) + max(0.0, self.overdue(now)))

    def forgive(self, now: float) -> None:
        """Its source gets no penalty for this visitor."""
        if self._counts_as_attempt:
            self._counts_as_attempt = False
            self.source.take_attempt_back(now, arrived=self.arrived)


class Guard:
    """Places and line of one service. `now` is in seconds, of any clock that never goes back."""

    def __init__(self, caps: Caps, *, max_resting: int = MAX_RESTING) -> None:
        self.caps = caps  # may be replaced; no visitor loses its place by that
        self._line: dict[Visitor, None] = {}  # oldest first; so is the next
        self._unauthenticated: dict[Visitor, None] = {}
        self._sources = SourceTable(remembered_penalty, max_resting=max_resting)

    @property
    def unauthenticated(self) -> int:
        """Number of places that are taken."""
        return len(self._unauthenticated)

    @property
    def waiting(self) -> int:
        """Number of visitors in line."""
        return len(self._line)

    @property
    def sources(self) -> int:
        """Number of sources remembered."""
        return len(self._sources)

    def record(self, host: str) -> SourceRecord:
        """What is known of the source of `host`."""
        source = source_of(host)
        return self._sources.get(source) or SourceRecord(source)

    def arrive(
        self,
        host: str,
        now: float,
        *,
        traffic: Callable[[], Traffic],
        evict: Callable[[], None],
    ) -> Visitor:
        """Put a visitor from `host` in line; it may get a place at once.

        `traffic` returns what it has said, whenever it is called. `evict` is called once if its
        place, or its place in line, goes to another visitor; it is gone then.
        """
        source = self.record(host)
        source.add_attempt(now)
        source.visitors += 1
        source.waiting += 1
        self._keep(source, now)
        visitor = Visitor(now, source, traffic, evict)
        self._line[visitor] = None
        self.admit(now)
        if len(self._line) > self.caps.waiting:
            # Of equals the first, which is the oldest.
            worst = max(self._line, key=lambda one: (one.level_at(now), one.source.has_place))
            self._evict(worst, now)
        return visitor

    def admit(self, now: float) -> None:
        """Admit visitors in line to all places that they may have by now."""
        self._update_established(now)
        line = sorted(self._line, key=lambda one: penalty_level(one.source.penalty_at(now)))
        full: set[SourceRecord] = set()
        for one in line:  # of equals the first, as they came
            source = one.source
            if source in full:
                continue
            own = self._is_full(source)
            if own or _reached(self.caps.unauthenticated, len(self._unauthenticated)):
                rivals = (
                    rival for rival in self._unauthenticated if rival.source is source or not own
                )
                victim = _worst(rivals, one.level_at(now), now)
                if victim is not None:
                    self._evict(victim, now)
                elif own:
                    full.add(source)
                    continue
                else:  # the rest of the line has no better claim
                    return
            self._give_place(one, now)

    def admit_overdue(self, visitor: Visitor, now: float) -> None:
        """The visitor has waited for `patience`: admit it, unless its source has a place.

        It gets the place of the worst unauthenticated visitor.
        """
        self.admit(now)
        if (
            visitor.standing is Standing.WAITING
            and not visitor.source.has_place
            and self._unauthenticated
        ):
            self._evict(max(self._unauthenticated, key=lambda one: _badness(one, now)), now)
            self._give_place(visitor, now)

    def may_wait(self, visitor: Visitor) -> bool:
        """False if its source has used up `per_source` with established visitors alone."""
        source = visitor.source
        established = source.visitors - source.waiting - source.unauthenticated
        return not _reached(self.caps.per_source, established)

    def leave(self, visitor: Visitor, now: float, ending: Ending) -> None:
        """The visitor has ended. Does nothing if it was evicted."""
        if visitor.standing is Standing.GONE:
            return
        self._update_established(now)
        source = visitor.source
        if visitor.traffic().logged_in:
            visitor.forgive(now)
            if now - visitor.arrived >= LONG_SESSION:
                source.halve_failures(now)
        elif ending is Ending.OURS or not self.caps.tracks_logins:
            visitor.forgive(now)
        else:
            source.add_failure(now)
        self._remove(visitor, now)

    def _is_full(self, source: SourceRecord) -> bool:
        """Whether a visitor of `source` needs the place of another one of that source."""
        with_place = source.visitors - source.waiting
        return _reached(self.caps.per_source, with_place) or _reached(
            self.caps.unauthenticated_per_source, source.unauthenticated
        )

    def _update_established(self, now: float) -> None:
        for one in list(self._unauthenticated):
            traffic = one.traffic()
            if traffic.logged_in:
                one.forgive(now)
            if is_established(traffic, now - one.admitted):
                self._establish(one)

    def _give_place(self, visitor: Visitor, now: float) -> None:
        del self._line[visitor]
        visitor.source.waiting -= 1
        if not self.caps.tracks_logins:
            visitor.standing = Standing.ESTABLISHED
            return
        self._unauthenticated[visitor] = None
        visitor.source.unauthenticated += 1
        visitor.standing, visitor.admitted = Standing.UNAUTHENTICATED, now

    def _establish(self, visitor: Visitor) -> None:
        visitor.standing = Standing.ESTABLISHED
        visitor.source.unauthenticated -= 1
        del self._unauthenticated[visitor]

    def _evict(self, visitor: Visitor, now: float) -> None:
        self._remove(visitor, now)
        visitor.evict()

    def _remove(self, visitor: Visitor, now: float) -> None:
        source = visitor.source
        if visitor.standing is Standing.WAITING:
            del self._line[visitor]
            source.waiting -= 1
        elif visitor.standing is Standing.UNAUTHENTICATED:
            self._establish(visitor)
        visitor.standing = Standing.GONE
        source.visitors -= 1
        self._keep(source, now)

    def _keep(self, source: SourceRecord, now: float) -> None:
        self._sources.put(source.source, source, now, active=source.visitors > 0)


def _reached(cap: int, count: int) -> bool:
    return 0 < cap <= count


def _worst(rivals: Iterable[Visitor], claim: int, now: float) -> Visitor | None:
    """Which of `rivals` a visitor at the penalty level `claim` displaces; None if it may not."""

    def may_go(one: Visitor) -> bool:
        level = one.level_at(now)
        if level >= max(PENALIZED_LEVEL, claim + LEVELS_APART):
            return True
        return one.overdue(now) >= 0 and level > claim - LEVELS_APART

    # Of equals the first, which is the oldest.
    return max(filter(may_go, rivals), key=lambda one: _badness(one, now), default=None)


def _badness(one: Visitor, now: float) -> tuple[int, bool, int]:
    sent = one.traffic().sent
    said = sent if sent >= IDENT_BYTES else 0
    return one.level_at(now), one.overdue(now) >= 0, -said
