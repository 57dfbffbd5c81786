from __future__ import annotations

from pathlib import Path

import pytest

from protocol.process.state import StateFolder
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import load_or_make
from tests.support.relay_commands import enrol


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    """Not there yet."""
    return StateFolder(tmp_path / "state")


@pytest.fixture
def relay_state(state: StateFolder) -> StateFolder:
    """Of a relay with an agent, and one that is invited."""
    state.ensure()
    with Registry(state) as registry:
        load_or_make(state, registry)
    enrol(state, "home", 1)
    return state
