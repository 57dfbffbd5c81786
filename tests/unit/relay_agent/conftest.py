from __future__ import annotations

import pytest
import trio.testing


@pytest.fixture
def jumping_clock() -> trio.testing.MockClock:
    """Jumps only when nothing came over loopback for a moment: the kernel has no clock of ours."""
    return trio.testing.MockClock(autojump_threshold=0.02)
