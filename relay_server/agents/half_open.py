"""The half-open limit: bounds on callers that have not completed the handshake. Pure.

A caller is half-open from accept until its agent is known. Each attempt takes a token from its
source's bucket, which fills with time; a success gives the token back. So a fleet behind one
address gets in as fast as its handshakes complete, `per_source` at a time, and a source whose
attempts all fail is slowed down.

    at the bound per source    the new caller is turned away; no other source is affected
    at the bound of all        the oldest caller is evicted: it has had the most time, and an agent
                               needs one round trip. Callers whose message 1 proved genuine go last

That proof is weak, since message 1 can be recorded and replayed; so proved callers count as well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from relay_server.net.source import source_of
from relay_server.net.source_table import SourceTable

# Sources remembered only because they lack tokens, about 300 bytes each. A source that is forgotten
# starts afresh; an attacker with that many addresses gains nothing by it.
MAX_RESTING: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    total: int  # callers at once
    per_source: int  # of these, from one source
    attempts: int  # tokens that a source's bucket holds
    per_second: float  # tokens that it gets back


@dataclass(slots=True)
class _Bucket:
    """The tokens of one source, and its half-open callers."""

    source: str
    tokens: float
    filled: float  # when `tokens` was right
    callers: int = 0


@dataclass(slots=True, eq=False)
class Caller:
    evict: Callable[[], None]
    _bucket: _Bucket
    proved: bool = False  # message 1 was genuine


class HalfOpenLimit:
    def __init__(self, bounds: Callable[[], Bounds]) -> None:
        """`bounds` is called for each newcomer; half-open callers stay, whatever it then returns.

        At most `total` sources have half-open callers.
        """
        self._bounds = bounds
        self._unproved: OrderedDict[Caller, None] = OrderedDict()  # oldest first
        self._proved: OrderedDict[Caller, None] = OrderedDict()
        self._buckets = SourceTable(self._weigh, max_resting=MAX_RESTING)

    def __len__(self) -> int:
        """Number of half-open callers."""
        return len(self._unproved) + len(self._proved)

    @property
    def sources(self) -> int:
        """Number of sources remembered."""
        return len(self._buckets)

    def enter(self, host: str, now: float, evict: Callable[[], None]) -> Caller | None:
        """Count a new caller from `host` as half-open; None if its source is at its bound.

        `evict` is called if the caller is evicted for a newer one; `leave` is not needed then.
        """
        bounds = self._bounds()
        bucket = self._bucket(source_of(host), now)
        if bucket.callers >= bounds.per_source or bucket.tokens < 1:
            self._keep(bucket, now)
            return None
        if len(self) >= bounds.total:
            oldest = next(iter(self._unproved or self._proved))
            self._remove(oldest, now)
            oldest.evict()
        bucket.tokens -= 1
        bucket.callers += 1
        self._keep(bucket, now)
        caller = Caller(evict, bucket)
        self._unproved[caller] = None
        return caller

    def prove(self, caller: Caller) -> None:
        """Message 1 was genuine: others are evicted first."""
        caller.proved = True
        if caller in self._unproved:
            del self._unproved[caller]
            self._proved[caller] = None

    def leave(self, caller: Caller, now: float, *, known: bool) -> None:
        """`known`: the caller is an enrolled agent, so its source gets the token back."""
        if known:
            self._fill(caller._bucket, now, 1.0)
        if caller in self._unproved or caller in self._proved:
            self._remove(caller, now)

    def _remove(self, caller: Caller, now: float) -> None:
        self._unproved.pop(caller, None)
        self._proved.pop(caller, None)
        caller._bucket.callers -= 1
        self._keep(caller._bucket, now)

    def _bucket(self, source: str, now: float) -> _Bucket:
        bucket = self._buckets.get(source)
        if bucket is None:
            return _Bucket(source, float(self._bounds().attempts), now)
        self._fill(bucket, now, 0.0)
        return bucket

    def _fill(self, bucket: _Bucket, now: float, more: float) -> None:
        bounds = self._bounds()
        gained = (now - bucket.filled) * bounds.per_second + more
        bucket.tokens = min(float(bounds.attempts), bucket.tokens + gained)
        bucket.filled = now

    def _keep(self, bucket: _Bucket, now: float) -> None:
        self._buckets.put(bucket.source, bucket, now, active=bucket.callers > 0)

    def _weigh(self, bucket: _Bucket, now: float) -> float:
        """All buckets that are not full weigh the same: the least recent is forgotten first."""
        return float(bucket.tokens < self._bounds().attempts)
