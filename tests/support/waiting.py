"""Waiting in real time for what a process does, within a limit.

Nothing here sleeps for a fixed time: a test waits for an event (a log line, a listening port, the
end of a process, bytes on a socket) and a limit says when to give up. The limits are far above what
the events take, so that a busy machine does not fail a test; where time itself is the requirement
the test says so with a figure of its own.

Imports the standard library only, like `ports` and `processes`: the demo runs on what the product
needs and no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# For an event that is due within a second or so on a quiet machine.
LIMIT = 30.0
# For what moves a lot of data through everything.
LONG_LIMIT = 120.0
# How often a condition is looked at that nothing reports by itself.
GLANCE = 0.02


def eventually(probe: Callable[[], T | None], *, what: str, limit: float = LIMIT) -> T:
    """Return the first true result of `probe`, or fail naming `what` was waited for."""
    deadline = time.monotonic() + limit
    while True:
        result = probe()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {limit:g} s: {what}"
        time.sleep(GLANCE)
