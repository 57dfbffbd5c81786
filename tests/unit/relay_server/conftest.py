from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from protocol.process.state import StateFolder
from relay_server.registry.registry import Registry
from tests.support.relay import Relay, running


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="relay_server")
    return caplog


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    """With its default configuration. In a test that asks for `mock_clock`, time stands still."""
    async with running(tmp_path) as one:
        yield one


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    state = StateFolder(tmp_path / "state")
    state.ensure()
    return state


@pytest.fixture
def registry(state: StateFolder) -> Iterator[Registry]:
    with Registry(state) as registry:
        yield registry
