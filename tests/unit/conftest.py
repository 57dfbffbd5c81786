from __future__ import annotations

from pathlib import Path

import pytest
import trio.testing

from protocol.process.state import StateFolder


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    """An empty one."""
    state = StateFolder(tmp_path / "state")
    state.ensure()
    return state


@pytest.fixture
def jumping_clock() -> trio.testing.MockClock:
    """Jumps only when nothing came over loopback for a moment: the kernel has no clock of ours."""
    return trio.testing.MockClock(autojump_threshold=0.02)
