"""The guard of one public port at work: newcomers wait, and what it does is told of.

A gate belongs to an agent's key and port, as its listener does, and outlives that: a source's score
is not mended by an agent that publishes anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

from protocol.process.logs import event
from relay_server.brake import Brake
from relay_server.guard import GRACE, Answer, Guard, Traffic, Visitor

log = logging.getLogger(__name__)

# Newcomers who wait for a place, each with a descriptor. More at a time are no handful of people,
# and are not spared eviction either.
MAX_WAITING: Final = 16
# How often they ask again: nobody notices such a delay, and sixteen who ask cost nothing.
ASK_AGAIN: Final = 0.05


@dataclass(slots=True, eq=False)
class Gate:
    guard: Guard
    waiting: int = 0
    _refusals: Brake = field(default_factory=Brake)
    _evictions: Brake = field(default_factory=Brake)

    async def enter(
        self, host: str, *, traffic: Callable[[], Traffic], evict: Callable[[], None]
    ) -> Visitor | None:
        """A place for a visitor from `host`, as `Guard.arrive`; None if it may have none."""
        came = trio.current_time()
        while True:
            now = trio.current_time()
            patient = now - came < GRACE and self.waiting < MAX_WAITING
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
