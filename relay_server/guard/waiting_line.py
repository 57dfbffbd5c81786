"""The guard of one public port at work: newcomers wait, and what it does is told of.

A line belongs to an agent's key and port, as its listener does, and outlives that: a source's score
is not mended by an agent that publishes anew.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from protocol.process.logs import event
from protocol.process.rate_limit import RateLimit
from relay_server.guard.guard import Ending, Guard, Standing, Traffic, Visitor

log = logging.getLogger(__name__)

# How often it is looked whether a place is there: nobody notices such a delay.
ASK_AGAIN: Final = 0.05
# Visitors a minute whose coming is told of one by one, whatever becomes of them. More are bots, or
# a script; those who stay are told of when they go.
ARRIVALS: Final = 60


@dataclass(slots=True, eq=False)
class WaitingLine:
    guard: Guard
    service: str = ""
    refused: Counter[str] = field(default_factory=Counter)  # visitors, by reason
    _looked: float = field(default=-math.inf, init=False)
    _arrivals: RateLimit = field(default_factory=partial(RateLimit, lines=ARRIVALS))
    _refusals: RateLimit = field(default_factory=RateLimit)
    _evictions: RateLimit = field(default_factory=RateLimit)

    async def enter(
        self,
        host: str,
        *,
        patience: float,
        traffic: Callable[[], Traffic],
        evict: Callable[[], None],
    ) -> Visitor | None:
        """A place for a visitor from `host`; None if there was none within `patience` seconds."""
        came = trio.current_time()
        visitor = self.guard.come(host, came, traffic=traffic, evict=evict)
        ours = True
        try:
            while visitor.standing is Standing.WAITS and self._may_wait(visitor, came + patience):
                await trio.sleep(ASK_AGAIN)
                self._look()
            if visitor.standing is Standing.WAITS:
                self.guard.insist(visitor, trio.current_time())
            # It may have been evicted in the turn in which it came.
            await trio.lowlevel.checkpoint_if_cancelled()
            ours = visitor.standing in (Standing.WAITS, Standing.GONE)
        finally:
            if ours:
                self.guard.leave(visitor, trio.current_time(), Ending.OURS)
        return None if ours else visitor

    def _may_wait(self, visitor: Visitor, until: float) -> bool:
        return trio.current_time() < until and self.guard.may_wait(visitor)

    def _look(self) -> None:
        """Each who waits asks, but one look is for them all."""
        now = trio.current_time()
        if now >= self._looked + ASK_AGAIN:
            self._looked = now
            self.guard.seat(now)

    def tell_arrival(self, about: Mapping[str, object], stream: int) -> bool:
        """Log it, unless there are many; then the next one that is told says how many."""
        if not self._arrivals.allows(trio.current_time()):
            return False
        untold = self._arrivals.take_suppressed()
        more = {"untold": untold} if untold else {}
        event(log, logging.INFO, "visitor-in", **about, stream=stream, **more)
        return True

    async def tell_refused(self, about: Mapping[str, object], reason: str) -> None:
        """Log it, unless there are many; then once, when the time has come, how many."""
        await _tell(self._refusals, _REFUSED, about, reason=reason)

    async def tell_evicted(self, about: Mapping[str, object], traffic: Traffic) -> None:
        sizes = {"received": traffic.sent, "sent": traffic.received}
        await _tell(self._evictions, _EVICTED, about, **sizes)


# The line about one, and the one about those that were too many to tell of.
_REFUSED: Final = ("visitor-refused", "visitors-refused")
_EVICTED: Final = ("visitor-evicted", "visitors-evicted")


async def _tell(
    limit: RateLimit, names: tuple[str, str], about: Mapping[str, object], **details: object
) -> None:
    one, many = names
    if limit.allows(trio.current_time()):
        event(log, logging.INFO, one, **about, **details)
    elif limit.suppressed == 1:
        await trio.sleep_until(limit.ends)
        common = {name: about[name] for name in ("agent", "service")}
        event(log, logging.INFO, many, **common, more=limit.take_suppressed())
