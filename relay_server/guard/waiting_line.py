"""The line of visitors that wait for a place at one public port, and its log.

The rules are those of `Guard`; here are the tasks, the clock and the log lines. A line belongs to
an agent's key and port, like the listener of that port, and outlives it: penalties remain when an
agent publishes the port again.
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

# In seconds: how often a waiting visitor checks for a place. No user notices such a delay.
POLL_INTERVAL: Final = 0.05
# Arrivals logged a minute. More are bots, or a script; `visitor-out` of those that log in is logged
# all the same.
ARRIVALS: Final = 60


@dataclass(slots=True, eq=False)
class WaitingLine:
    guard: Guard
    service: str = ""
    refused: Counter[str] = field(default_factory=Counter)  # number of visitors by reason
    _checked: float = field(default=-math.inf, init=False)
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
        """Wait for a place for a visitor from `host`; None if it was evicted or refused.

        It is refused if it has no place after `patience` seconds. `traffic` and `evict` are those
        of `Guard.arrive`. The caller has to call `Guard.leave` for the visitor returned.
        """
        came = trio.current_time()
        visitor = self.guard.arrive(host, came, traffic=traffic, evict=evict)
        without_place = True
        try:
            while visitor.standing is Standing.WAITING and self._may_wait(visitor, came + patience):
                await trio.sleep(POLL_INTERVAL)
                self._check()
            if visitor.standing is Standing.WAITING:
                self.guard.admit_overdue(visitor, trio.current_time())
            # It may have been evicted since this task was scheduled.
            await trio.lowlevel.checkpoint_if_cancelled()
            without_place = visitor.standing in (Standing.WAITING, Standing.GONE)
        finally:
            if without_place:
                self.guard.leave(visitor, trio.current_time(), Ending.OURS)
        return None if without_place else visitor

    def _may_wait(self, visitor: Visitor, until: float) -> bool:
        return trio.current_time() < until and self.guard.may_wait(visitor)

    def _check(self) -> None:
        """Let the guard admit visitors; one check serves all that wait in line."""
        now = trio.current_time()
        if now >= self._checked + POLL_INTERVAL:
            self._checked = now
            self.guard.admit(now)

    def log_arrival(self, about: Mapping[str, object], stream: int) -> bool:
        """Log an arrival, rate-limited; the next line that is written has the number suppressed.

        Returns whether it was logged.
        """
        if not self._arrivals.allows(trio.current_time()):
            return False
        suppressed = self._arrivals.take_suppressed()
        more = {"suppressed": suppressed} if suppressed else {}
        event(log, logging.INFO, "visitor-in", **about, stream=stream, **more)
        return True

    async def log_refused(self, about: Mapping[str, object], reason: str) -> None:
        """Log a refusal, rate-limited. May sleep until the number suppressed can be logged."""
        await _log_limited(self._refusals, _REFUSED, about, reason=reason)

    async def log_evicted(self, about: Mapping[str, object], traffic: Traffic) -> None:
        """Log an eviction, in the same way."""
        sizes = {"received": traffic.sent, "sent": traffic.received}
        await _log_limited(self._evictions, _EVICTED, about, **sizes)


# The event of one visitor, and the event with the number of those suppressed.
_REFUSED: Final = ("visitor-refused", "visitors-refused")
_EVICTED: Final = ("visitor-evicted", "visitors-evicted")


async def _log_limited(
    limit: RateLimit, names: tuple[str, str], about: Mapping[str, object], **details: object
) -> None:
    one, many = names
    if limit.allows(trio.current_time()):
        event(log, logging.INFO, one, **about, **details)
    elif limit.suppressed == 1:
        await trio.sleep_until(limit.ends)
        common = {name: about[name] for name in ("agent", "service")}
        event(log, logging.INFO, many, **common, more=limit.take_suppressed())
