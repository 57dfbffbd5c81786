from __future__ import annotations

import pytest
import trio
import trio.testing

from protocol.session.liveness import LATE
from protocol.transport.grace import GRACE, wait_until


@pytest.mark.parametrize(("late", "more"), [(-5.0, 5.0), (LATE, 0.0), (LATE + 1, GRACE)])
def test_who_did_not_run_when_it_passed_waits_a_little_longer(late: float, more: float) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def wait() -> float:
        began = trio.current_time()
        await wait_until(began - late)
        return trio.current_time() - began

    assert trio.run(wait, clock=clock) == more
