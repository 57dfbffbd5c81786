"""Who may stand before one service's SSH server before it knows them. Pure.

An SSH server bears few who have not logged in: dropbear five an address and thirty in all, OpenSSH
drops at random from ten on. The relay cannot see a login, so it counts the *young*: visitors who
may still be without one. A visitor is young until

    it has sent 2 KiB               a login by key takes that much of OpenSSH's client
    or has received 16 KiB          nobody gets that much before the login
    or sent 512 B, and 30 s passed  keys were exchanged, and it is not one of those who go at once
    or has been there for 300 s     dropbear itself ends whoever has not logged in by then

Only the young are ever evicted. At a cap on the young the newcomer takes the place of

    the one whose source has the worst score, of those
    one of whose source holds the most young, of those
    one that has had its time to log in (`GRACE`), or to begin (`SILENT_GRACE`), of those
    the one that has sent the least, of those the oldest

Whoever really logs in soon has sent more than those who sit there idle, and is past all this within
a second. So that a handful of people who come at once do not evict each other, a newcomer who is no
better than the one it would evict waits a moment for that one to have its time (gate.py).

The score of a source counts its visitors who ended young, halves in `HALF_LIFE`, and again whenever
one of its visitors ends after a long session. What we ended ourselves never counts. At worst a bad
score costs the place at a cap: nobody is refused for it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from relay_server.doorway import source_of

# Bytes the visitor has sent. OpenSSH's client has sent 2.1 KiB when dropbear accepts its key, and
# 3.3 when OpenSSH does, which agrees on a bigger key exchange; a bot that only connects has sent
# none, and one that talks a byte a second 300 when dropbear hangs up.
GROWN_BYTES: Final = 2048
# Bytes the visitor has received: a banner of a page, two key exchanges and ten failures are less.
SERVED_BYTES: Final = 16 * 1024
# The smallest clients (dropbear's own) have sent more when keys are exchanged.
SOME_BYTES: Final = 512
# People type a password in that time; it is not that long for a router to suffer.
SOME_SECONDS: Final = 30.0
# AUTH_TIMEOUT of dropbear; LoginGraceTime of OpenSSH is 120 s.
GROWN_SECONDS: Final = 300.0

# What a login by key takes of a slow router and over a bad path, without a person in between.
GRACE: Final = 2.0
# Until then somebody who means to log in has begun: an SSH client sends its identification at once
# and a KiB of what it can do as soon as it has the server's, after one round trip to the router.
SILENT_GRACE: Final = 0.75
BEGUN_BYTES: Final = 256
# "SSH-2.0-": less says nothing. Else a bot's first byte would put it before whoever has just come.
LEAST_BYTES: Final = 8
# Bytes both ways of a visitor whose directions both finished: less than a one-shot `ssh host true`
# of the smallest client at the smallest server (2760), more than a look at the banner and keys.
ONE_SHOT_BYTES: Final = 2560

# A person who mistyped is forgiven in minutes; a bot comes again sooner than that.
HALF_LIFE: Final = 600.0
# Healed within the hour, whatever was done: six half-lives.
WORST: Final = 64.0
# A session somebody worked in, and not a guess that was kept waiting.
LONG_SECONDS: Final = 60.0

# Half a point is no reason to remember a source.
_FORGOTTEN: Final = 0.5
# Sources remembered for their score alone, about 300 bytes each, for each service. One that is
# pushed out starts afresh, which whoever owns so many addresses can have anyway.
MAX_RESTING: Final = 1024


class Ending(enum.Enum):
    OURS = enum.auto()  # the agent was away, the target was down, the relay stopped
    FINISHED = enum.auto()  # both directions
    CUT = enum.auto()  # by the visitor or its SSH server


class Answer(enum.Enum):
    """What a newcomer hears who gets no place now."""

    WAIT = enum.auto()  # and ask again: nobody has had its time
    CROWDED = enum.auto()  # its source has as many visitors as it may, all of them established


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """How many visitors at once; the reasons are where the defaults are, in config.py."""

    per_source: int
    young_per_source: int
    young: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes so far."""

    sent: int = 0  # by the visitor
    received: int = 0


def has_grown(traffic: Traffic, age: float) -> bool:
    return (
        traffic.sent >= GROWN_BYTES
        or traffic.received >= SERVED_BYTES
        or age >= GROWN_SECONDS
        or (traffic.sent >= SOME_BYTES and age >= SOME_SECONDS)
    )


@dataclass(slots=True, eq=False)
class _Source:
    name: str
    score: float = 0.0
    scored: float = 0.0  # when `score` was right
    visitors: int = 0
    young: int = 0

    def score_at(self, now: float) -> float:
        return float(self.score * 0.5 ** ((now - self.scored) / HALF_LIFE))

    def rank_at(self, now: float) -> int:
        """Whole points: one failure, once it is a moment old, makes nobody a bot."""
        return int(self.score_at(now))


@dataclass(slots=True, eq=False)
class Visitor:
    came: float
    young: bool = field(default=True, init=False)
    evicted: bool = field(default=False, init=False)
    _source: _Source
    _traffic: Callable[[], Traffic]
    _evict: Callable[[], None]

    def is_due(self, now: float) -> bool:
        """Whether it has had its time to log in, or just to begin with that."""
        begun = self._traffic().sent >= BEGUN_BYTES
        return now - self.came >= (GRACE if begun else SILENT_GRACE)


class Guard:
    """Of one service."""

    def __init__(self, caps: Caps, *, most_resting: int = MAX_RESTING) -> None:
        self._caps = caps
        self._most_resting = most_resting
        self.evicted_at = -math.inf  # the last time
        self._young: dict[Visitor, None] = {}  # oldest first
        self._active: dict[str, _Source] = {}  # with visitors
        self._resting: dict[str, _Source] = {}  # without, and with a score; least recent first

    @property
    def young(self) -> int:
        return len(self._young)

    @property
    def sources(self) -> int:
        """Sources remembered."""
        return len(self._active) + len(self._resting)

    def score(self, host: str, now: float) -> float:
        name = source_of(host)
        source = self._active.get(name) or self._resting.get(name)
        return 0.0 if source is None else source.score_at(now)

    def arrive(
        self,
        host: str,
        now: float,
        *,
        traffic: Callable[[], Traffic],
        evict: Callable[[], None],
        patient: bool,
    ) -> Visitor | Answer:
        """A place for a visitor from `host`, if need be that of another.

        `traffic` tells of the visitor whenever it is asked, `evict` is called if its place goes to
        somebody else. A newcomer who is not `patient` is never told to wait.
        """
        self._let_grow(now)
        name = source_of(host)
        source = self._active.get(name) or self._resting.get(name) or _Source(name)
        rivals = self._rivals(source)
        if rivals is not None:
            victim = self._worst(rivals, now)
            if victim is None:
                return Answer.CROWDED
            if patient and not self._may_go(victim, source, now):
                return Answer.WAIT
            self._remove(victim)
            self._remember(victim._source, now)
            victim.evicted = True
            self.evicted_at = now
            victim._evict()
        visitor = Visitor(now, source, traffic, evict)
        self._young[visitor] = None
        source.visitors += 1
        source.young += 1
        self._remember(source, now)
        return visitor

    def leave(self, visitor: Visitor, now: float, ending: Ending) -> None:
        """The visitor has ended. Nothing if it was evicted."""
        if visitor.evicted:
            return
        self._let_grow(now)
        self._judge(visitor, now, ending)
        self._remove(visitor)
        self._remember(visitor._source, now)

    def _rivals(self, source: _Source) -> list[Visitor] | None:
        """Those of whom one must go before `source` gets a place; None if there is room."""
        if source.visitors >= self._caps.per_source or source.young >= self._caps.young_per_source:
            return [one for one in self._young if one._source is source]
        if len(self._young) >= self._caps.young:
            return list(self._young)
        return None

    def _worst(self, rivals: Iterable[Visitor], now: float) -> Visitor | None:
        def badness(one: Visitor) -> tuple[int, int, bool, int]:
            source = one._source
            sent = one._traffic().sent
            said = sent if sent >= LEAST_BYTES else 0
            return source.rank_at(now), source.young, one.is_due(now), -said

        return max(rivals, key=badness, default=None)  # of equals the first, which is the oldest

    def _may_go(self, victim: Visitor, source: _Source, now: float) -> bool:
        """Whether `victim` has had its time, or its source less of a claim than `source`."""
        if victim.is_due(now):
            return True
        theirs = victim._source
        return theirs.rank_at(now) > source.rank_at(now) or theirs.young > source.young + 1

    def _let_grow(self, now: float) -> None:
        for one in list(self._young):
            if has_grown(one._traffic(), now - one.came):
                self._take_from_young(one)

    def _take_from_young(self, visitor: Visitor) -> None:
        visitor.young = False
        visitor._source.young -= 1
        del self._young[visitor]

    def _judge(self, visitor: Visitor, now: float, ending: Ending) -> None:
        source, traffic = visitor._source, visitor._traffic()
        if ending is Ending.OURS:
            return
        if not visitor.young:
            if now - visitor.came >= LONG_SECONDS:
                source.score, source.scored = source.score_at(now) / 2, now
        elif ending is Ending.CUT or traffic.sent + traffic.received < ONE_SHOT_BYTES:
            source.score, source.scored = min(WORST, source.score_at(now) + 1), now

    def _remove(self, visitor: Visitor) -> None:
        if visitor.young:
            self._take_from_young(visitor)
        visitor._source.visitors -= 1

    def _remember(self, source: _Source, now: float) -> None:
        """Put `source` where it belongs; nowhere, if there is nothing to remember about it."""
        self._active.pop(source.name, None)
        self._resting.pop(source.name, None)
        if source.visitors:
            self._active[source.name] = source
        elif source.score_at(now) >= _FORGOTTEN:
            self._resting[source.name] = source
            if len(self._resting) > self._most_resting:
                healed = min(self._resting.values(), key=lambda one: one.score_at(now))
                del self._resting[healed.name]
