"""The guard of one public port at work: newcomers wait, and what it does is told of.

A gate belongs to an agent's key and port, as its listener does, and outlives that: a source's score
is not mended by an agent that publishes anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from protocol.process.logs import event
from relay_server.brake import Brake
from relay_server.guard import Answer, Guard, Traffic, Visitor

log = logging.getLogger(__name__)

# Newcomers who wait for a place, each with a descriptor. More at a time are no handful of people,
# and are not spared eviction either.
MAX_WAITING: Final = 16
# How long they wait at most: with a login that takes as long again it is still bearable, and most
# logins before theirs are through by then.
PATIENCE: Final = 1.0
# Nobody waits while others are evicted: under attack a place is worth taking at once.
CALM: Final = 10.0
# How often they ask again: nobody notices such a delay, and sixteen who ask cost nothing.
ASK_AGAIN: Final = 0.05
# Visitors a minute whose coming is told of one by one, whatever becomes of them. More are bots, or
# a script; those who stay are told of when they go.
ARRIVALS: Final = 60


@dataclass(slots=True, eq=False)
class Gate:
    guard: Guard
    waiting: int = 0
    _arrivals: Brake = field(default_factory=partial(Brake, lines=ARRIVALS))
    _refusals: Brake = field(default_factory=Brake)
    _evictions: Brake = field(default_factory=Brake)

    async def enter(
        self, host: str, *, traffic: Callable[[], Traffic], evict: Callable[[], None]
    ) -> Visitor | None:
        """A place for a visitor from `host`, as `Guard.arrive`; None if it may have none."""
        came = trio.current_time()
        while True:
            now = trio.current_time()
            calm = now - self.guard.evicted_at >= CALM and self.waiting < MAX_WAITING
            patient = calm and now - came < PATIENCE
            answer = self.guard.arrive(host, now, traffic=traffic, evict=evict, patient=patient)
            if answer is Answer.CROWDED:
                return None
            if isinstance(answer, Visitor):
                return answer
            self.waiting += 1
            try:
                await trio.sleep(ASK_AGAIN)
            finally:
                self.waiting -= 1

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
        await _tell(self._refusals, "refused", about, reason=reason)

    async def tell_evicted(self, about: Mapping[str, object], traffic: Traffic) -> None:
        sizes = {"received": traffic.sent, "sent": traffic.received}
        await _tell(self._evictions, "evicted", about, **sizes)


async def _tell(brake: Brake, what: str, about: Mapping[str, object], **details: object) -> None:
    if brake.allows(trio.current_time()):
        event(log, logging.INFO, f"visitor-{what}", **about, **details)
    elif brake.suppressed == 1:
        await trio.sleep_until(brake.ends)
        common = {name: about[name] for name in ("agent", "service")}
        event(log, logging.INFO, f"visitors-{what}", **common, more=brake.take_suppressed())
