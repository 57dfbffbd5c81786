"""Who may stand at the door: bounds on callers of whom nothing is known yet. Pure.

A caller stands there from accept until its agent is known. Each attempt takes a token from its
source's bucket, which fills with time; a success gives the token back. So a fleet behind one
address goes in as fast as its handshakes are done, `per_source` at a time, and whoever only ever
fails is slowed down.

    at the source's bound      the newcomer is turned away, and nobody else notices
    at the bound of all        the oldest goes: it has had the most time, and an agent needs one
                               round trip; those whose message 1 proved genuine go last

That proof is weak (it can be recorded and shown again), so the proved count as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from relay_server.net.source import source_of

# Sources remembered for their failures alone, about 200 bytes each. One that is pushed out starts
# afresh, which whoever owns so many addresses can have anyway.
MAX_RESTING: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    total: int  # callers at once
    per_source: int  # of these, from one source
    attempts: int  # tokens that a source's bucket holds
    per_second: float  # tokens that it gets back


@dataclass(slots=True)
class _Source:
    name: str
    tokens: float
    filled: float  # when `tokens` was right
    callers: int = 0


@dataclass(slots=True, eq=False)
class Caller:
    evict: Callable[[], None]
    _source: _Source
    proved: bool = False  # message 1 was genuine


class HalfOpenLimit:
    def __init__(self, bounds: Callable[[], Bounds]) -> None:
        """`bounds` are asked for anew each time. Callers at the door stay whatever they become."""
        self._bounds = bounds
        self._unproved: dict[Caller, None] = {}  # oldest first
        self._proved: dict[Caller, None] = {}
        self._active: dict[str, _Source] = {}  # with callers at the door: at most `total`
        self._resting: dict[str, _Source] = {}  # without, and short of tokens; oldest first

    def __len__(self) -> int:
        """Callers at the door."""
        return len(self._unproved) + len(self._proved)

    @property
    def sources(self) -> int:
        """Sources remembered."""
        return len(self._active) + len(self._resting)

    def enter(self, host: str, now: float, evict: Callable[[], None]) -> Caller | None:
        """A place at the door; None if `host`'s source may have no more now.

        `evict` is called if the place goes to somebody else; `leave` need not be called then.
        """
        bounds = self._bounds()
        source = self._known(source_of(host), now)
        if source.callers >= bounds.per_source or source.tokens < 1:
            self._remember(source)
            return None
        if len(self) >= bounds.total:
            oldest = next(iter(self._unproved or self._proved))
            self._remove(oldest)
            oldest.evict()
        source.tokens -= 1
        source.callers += 1
        self._remember(source)
        caller = Caller(evict, source)
        self._unproved[caller] = None
        return caller

    def prove(self, caller: Caller) -> None:
        """Message 1 was genuine: others are evicted first."""
        caller.proved = True
        if caller in self._unproved:
            del self._unproved[caller]
            self._proved[caller] = None

    def leave(self, caller: Caller, now: float, *, known: bool) -> None:
        """`known`: it is an agent of ours, so the attempt costs its source nothing."""
        if known:
            self._fill(caller._source, now, 1.0)
        if caller in self._unproved or caller in self._proved:
            self._remove(caller)

    def _remove(self, caller: Caller) -> None:
        self._unproved.pop(caller, None)
        self._proved.pop(caller, None)
        caller._source.callers -= 1
        self._remember(caller._source)

    def _known(self, name: str, now: float) -> _Source:
        source = self._active.get(name) or self._resting.get(name)
        if source is None:
            return _Source(name, float(self._bounds().attempts), now)
        self._fill(source, now, 0.0)
        return source

    def _fill(self, source: _Source, now: float, more: float) -> None:
        bounds = self._bounds()
        gained = (now - source.filled) * bounds.per_second + more
        source.tokens = min(float(bounds.attempts), source.tokens + gained)
        source.filled = now

    def _remember(self, source: _Source) -> None:
        """Put `source` where it belongs; nowhere, if there is nothing to remember about it."""
        self._active.pop(source.name, None)
        self._resting.pop(source.name, None)
        if source.callers:
            self._active[source.name] = source
        elif source.tokens < self._bounds().attempts:
            self._resting[source.name] = source
            if len(self._resting) > MAX_RESTING:
                del self._resting[next(iter(self._resting))]
