"""Who may stand before one service's SSH server before it knows them. Pure.

An SSH server bears few who have not logged in: dropbear five an address and thirty in all, OpenSSH
drops at random from ten on. So visitors who may still be without a login, the *young*, get few
places there, and whoever gets none at once waits in line at the relay, unread. A visitor is young
until

    its SSH server was seen to let it in (login.py)
    or it has sent or received 16 KiB, which guessing never comes to
    or has been there for 300 s, as dropbear itself ends whoever has not logged in by then

Only the young are ever evicted. What decides is how many came from a source lately and did not log
in: its *burden*, which counts its visitors of the last minute or so, and for longer those who ended
by themselves without a login. A login takes its visitor off again. So who comes to log in has a
burden of one or two, and a bot's source within seconds one of dozens, of which bots that were
evicted are a part. Burdens are compared by their *grade*, doubling from one to the next, since a
small difference says nothing.

    a place that is free           goes to the best grade in line, of those to who came first
    one that is taken              too, if its holder is of a source that is a bot's and two grades
                                   worse; or has had its time to log in, or to begin, and is not two
                                   grades better. Of several the worst grade goes, then who has had
                                   its time, then who has sent the least, then the oldest
    whoever's patience is over     gets the place of the worst, in that order and however good that
                                   one is, if its own source has none
    one who came too many for      the worst grade goes, of those one whose source has a place, then
    the line                       the oldest

Time that a holder takes beyond its own counts like visitors, so a place is nobody's for long. At
worst a bad grade costs the wait: a source without a place is refused for it only where more are in
line than may be, while another has one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from relay_server.guard.source_scores import MAX_RESTING, Source, Sources, grade_of

# Bytes either way. Ten guesses come to 3 KiB, with a legal notice and the largest of keys to 8.
GROWN_BYTES: Final = 16 * 1024
# AUTH_TIMEOUT of dropbear; LoginGraceTime of OpenSSH is 120 s.
GROWN_SECONDS: Final = 300.0

# What a login by key takes of a slow router that has several at once, and over a bad path, without
# a person in between. From a source of bots nobody is waited for longer than from a fast one.
GRACE: Final = 5.0
BOT_GRACE: Final = 2.0
# Until then somebody who means to log in has begun: an SSH client sends its identification at once
# and a KiB of what it can do as soon as it has the server's, after one round trip to the router.
SILENT_GRACE: Final = 0.75
BEGUN_BYTES: Final = 256
# "SSH-2.0-": less says nothing. Else a bot's first byte would put it before whoever has just come.
LEAST_BYTES: Final = 8

# Burdens from here on are a bot's: twice as many as may stand before a server from one source.
BOT_GRADE: Final = 4
# How many grades apart two sources are treated differently.
APART: Final = 2

# A session somebody worked in, and not a guess that was kept waiting.
LONG_SECONDS: Final = 60.0


class Ending(enum.Enum):
    OURS = enum.auto()  # the agent was away, the target was down, the relay stopped
    THEIRS = enum.auto()  # the visitor's or its SSH server's


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """How many visitors at once, 0 for any number; the reasons are in rules.py."""

    per_source: int
    young_per_source: int
    young: int
    waiting: int

    @property
    def without_young(self) -> bool:
        """Whether nobody is young: then all who have a place are alike, and none is evicted."""
        return not (self.young_per_source or self.young)


@dataclass(frozen=True, slots=True)
class Traffic:
    """So far."""

    sent: int = 0  # bytes by the visitor
    received: int = 0
    let_in: bool = False  # the server was seen to

    @property
    def logged_in(self) -> bool:
        return self.let_in or max(self.sent, self.received) >= GROWN_BYTES


def has_grown(traffic: Traffic, age: float) -> bool:
    return traffic.logged_in or age >= GROWN_SECONDS


class Standing(enum.Enum):
    WAITS = enum.auto()  # in line
    YOUNG = enum.auto()  # with one of the places
    GROWN = enum.auto()
    GONE = enum.auto()  # evicted, or by itself


@dataclass(slots=True, eq=False)
class Visitor:
    came: float
    source: Source
    traffic: Callable[[], Traffic]
    evict: Callable[[], None]
    standing: Standing = field(default=Standing.WAITS, init=False)
    seated: float = field(default=0.0, init=False)
    _is_burden: bool = field(default=True, init=False)

    def overdue(self, now: float) -> float:
        """How long it has its place beyond the time to log in, or just to begin with that."""
        if self.standing is Standing.WAITS:
            return 0.0
        grace = SILENT_GRACE
        if self.traffic().sent >= BEGUN_BYTES:
            is_bot = grade_of(self.source.burden_at(now)) >= BOT_GRADE
            grace = BOT_GRACE if is_bot else GRACE
        return now - self.seated - grace

    def grade_at(self, now: float) -> int:
        return grade_of(self.source.burden_at(now) + max(0.0, self.overdue(now)))

    def log_in(self, now: float) -> None:
        if self._is_burden:
            self._is_burden = False
            self.source.log_in(now, came=self.came)


class Guard:
    """Of one service."""

    def __init__(self, caps: Caps, *, most_resting: int = MAX_RESTING) -> None:
        self.caps = caps  # may be changed: who has a place keeps it
        self._line: dict[Visitor, None] = {}  # oldest first, as the next
        self._young: dict[Visitor, None] = {}
        self._sources = Sources(most_resting)

    @property
    def young(self) -> int:
        return len(self._young)

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def sources(self) -> int:
        """Sources remembered."""
        return len(self._sources)

    def score(self, host: str, now: float) -> float:
        source = self._sources.of(host)
        source.settle(now)
        return source.score

    def burden(self, host: str, now: float) -> float:
        return self._sources.of(host).burden_at(now)

    def come(
        self,
        host: str,
        now: float,
        *,
        traffic: Callable[[], Traffic],
        evict: Callable[[], None],
    ) -> Visitor:
        """Somebody from `host` gets in line, and perhaps a place at once.

        `traffic` tells of the visitor whenever it is asked, `evict` is called if its place, or that
        in line, goes to somebody else.
        """
        source = self._sources.of(host)
        source.come(now)
        source.visitors += 1
        source.waiting += 1
        self._sources.remember(source, now)
        visitor = Visitor(now, source, traffic, evict)
        self._line[visitor] = None
        self.seat(now)
        if len(self._line) > self.caps.waiting:
            # Of equals the first, which is the oldest.
            worst = max(self._line, key=lambda one: (one.grade_at(now), one.source.has_place))
            self._evict(worst, now)
        return visitor

    def seat(self, now: float) -> None:
        """Give those in line what places there are for them by now."""
        self._let_grow(now)
        line = sorted(self._line, key=lambda one: grade_of(one.source.burden_at(now)))
        full: set[Source] = set()
        for one in line:  # of equals the first, as they came
            source = one.source
            if source in full:
                continue
            own = self._is_full(source)
            if own or _reached(self.caps.young, len(self._young)):
                rivals = (rival for rival in self._young if rival.source is source or not own)
                victim = _worst(rivals, one.grade_at(now), now)
                if victim is not None:
                    self._evict(victim, now)
                elif own:
                    full.add(source)
                    continue
                else:  # who is after this one has no better claim
                    return
            self._give_place(one, now)

    def insist(self, visitor: Visitor, now: float) -> None:
        """Its patience is over: it gets a place, unless another of its source has one."""
        self.seat(now)
        if visitor.standing is Standing.WAITS and not visitor.source.has_place and self._young:
            self._evict(max(self._young, key=lambda one: _badness(one, now)), now)
            self._give_place(visitor, now)

    def may_wait(self, visitor: Visitor) -> bool:
        """Whether a place may come free for it: not where its source's are all established."""
        source = visitor.source
        grown = source.visitors - source.waiting - source.young
        return not _reached(self.caps.per_source, grown)

    def leave(self, visitor: Visitor, now: float, ending: Ending) -> None:
        """The visitor has ended. Nothing if it was evicted."""
        if visitor.standing is Standing.GONE:
            return
        self._let_grow(now)
        source = visitor.source
        if visitor.traffic().logged_in:
            visitor.log_in(now)
            if now - visitor.came >= LONG_SECONDS:
                source.heal(now)
        elif ending is Ending.OURS or self.caps.without_young:
            visitor.log_in(now)
        else:
            source.fail(now)
        self._remove(visitor, now)

    def _is_full(self, source: Source) -> bool:
        """Whether one of its own must go first."""
        here = source.visitors - source.waiting
        return _reached(self.caps.per_source, here) or _reached(
            self.caps.young_per_source, source.young
        )

    def _let_grow(self, now: float) -> None:
        for one in list(self._young):
            traffic = one.traffic()
            if traffic.logged_in:
                one.log_in(now)
            if has_grown(traffic, now - one.seated):
                self._take_from_young(one)

    def _give_place(self, visitor: Visitor, now: float) -> None:
        del self._line[visitor]
        visitor.source.waiting -= 1
        if self.caps.without_young:
            visitor.standing = Standing.GROWN
            return
        self._young[visitor] = None
        visitor.source.young += 1
        visitor.standing, visitor.seated = Standing.YOUNG, now

    def _take_from_young(self, visitor: Visitor) -> None:
        visitor.standing = Standing.GROWN
        visitor.source.young -= 1
        del self._young[visitor]

    def _evict(self, visitor: Visitor, now: float) -> None:
        self._remove(visitor, now)
        visitor.evict()

    def _remove(self, visitor: Visitor, now: float) -> None:
        source = visitor.source
        if visitor.standing is Standing.WAITS:
            del self._line[visitor]
            source.waiting -= 1
        elif visitor.standing is Standing.YOUNG:
            self._take_from_young(visitor)
        visitor.standing = Standing.GONE
        source.visitors -= 1
        self._sources.remember(source, now)


def _reached(cap: int, count: int) -> bool:
    return 0 < cap <= count


def _worst(rivals: Iterable[Visitor], claim: int, now: float) -> Visitor | None:
    """Whose place of these a newcomer of the grade `claim` gets."""

    def may_go(one: Visitor) -> bool:
        grade = one.grade_at(now)
        if grade >= max(BOT_GRADE, claim + APART):
            return True
        return one.overdue(now) >= 0 and grade > claim - APART

    # Of equals the first, which is the oldest.
    return max(filter(may_go, rivals), key=lambda one: _badness(one, now), default=None)


def _badness(one: Visitor, now: float) -> tuple[int, bool, int]:
    sent = one.traffic().sent
    said = sent if sent >= LEAST_BYTES else 0
    return one.grade_at(now), one.overdue(now) >= 0, -said
