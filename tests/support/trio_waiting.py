"""Waiting in trio for what other tasks do, without moving the test's clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio
import trio.testing

from tests.support.waiting import LIMIT


async def until(condition: Callable[[], object]) -> None:
    """Turn after turn until `condition` holds. A mock clock stands still, even one that jumps."""
    give_up = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < give_up, "what the test waits for does not happen"
        await trio.lowlevel.checkpoint()


async def quiet() -> None:
    """Until nothing happens any more; loopback needs no time, so a moment is enough."""
    await trio.testing.wait_all_tasks_blocked(0.01)
