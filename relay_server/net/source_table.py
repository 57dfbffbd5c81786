"""What is known of each source of connections, in bounded memory and at constant cost. Pure.

A source is active while it has connections; its entry is then kept, and the number of connections
bounds the number of such entries. Afterwards the entry rests, if it still weighs anything (missing
tokens, a penalty), and at most `max_resting` entries rest. The lightest ones are forgotten first.

To find the lightest entry of all would take a look at each. Instead, resting entries lie in
`BUCKETS` queues by their weight when they began to rest; each queue spans a factor of two. Of the
least recently used entry of each queue, the lightest is forgotten, and of equals the one in the
lighter queue. Where all entries lose weight at one rate, that is within a factor of two of the
lightest. Where all weigh the same, it is the least recently used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

_T = TypeVar("_T")

# Weights of 1 and less, then up to 2, 4, … 64; whatever is heavier is alike. As many entries are
# looked at when one has to go.
BUCKETS: Final = 8


class SourceTable(Generic[_T]):
    def __init__(self, weigh: Callable[[_T, float], float], *, max_resting: int) -> None:
        """`weigh(entry, now)` is what an entry without connections is worth; 0 is nothing."""
        self._weigh = weigh
        self._max_resting = max_resting
        self._active: dict[str, _T] = {}
        # An OrderedDict gives its oldest item at constant cost; a dict has to skip deleted ones.
        self._resting: tuple[OrderedDict[str, _T], ...] = tuple(
            OrderedDict() for _ in range(BUCKETS)
        )
        self._bucket_of: dict[str, OrderedDict[str, _T]] = {}

    def __len__(self) -> int:
        """Number of sources remembered."""
        return len(self._active) + len(self._bucket_of)

    def get(self, source: str) -> _T | None:
        """The entry of `source` (see `source_of`); None if nothing is known of it."""
        if source in self._active:
            return self._active[source]
        bucket = self._bucket_of.get(source)
        return None if bucket is None else bucket[source]

    def put(self, source: str, entry: _T, now: float, *, active: bool) -> None:
        """Keep `entry` for `source`, as the most recently used; `active`: it has connections."""
        self._active.pop(source, None)
        bucket = self._bucket_of.pop(source, None)
        if bucket is not None:
            del bucket[source]
        if active:
            self._active[source] = entry
            return
        weight = self._weigh(entry, now)
        if weight <= 0:
            return
        bucket = self._resting[min(int(weight).bit_length(), BUCKETS - 1)]
        bucket[source] = entry
        self._bucket_of[source] = bucket
        if len(self._bucket_of) > self._max_resting:
            self._forget_lightest(now)

    def _forget_lightest(self, now: float) -> None:
        oldest = [next(iter(bucket.items())) for bucket in self._resting if bucket]
        source, _ = min(oldest, key=lambda item: self._weigh(item[1], now))
        del self._bucket_of.pop(source)[source]
