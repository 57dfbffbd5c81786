"""Deadlines of whoever may come back."""

from __future__ import annotations

from typing import Final

import trio

from protocol.session.liveness import LATE

# For one who is knocking already: the longest pause between two attempts of an agent.
GRACE: Final = 8.0


async def wait_until(deadline: float) -> None:
    """Sleep until `deadline`, and a little longer if this process did not run when it passed.

    After a SIGSTOP or a suspended night the deadline is over in the first turn, before the one who
    was waited for could be heard.
    """
    while True:
        await trio.sleep_until(deadline)
        if trio.current_time() - deadline <= LATE:
            return
        deadline = trio.current_time() + GRACE
