from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio.testing

from tests.unit.relay_server.relay import Relay, running


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="relay_server")
    return caplog


@pytest.fixture
async def relay(tmp_path: Path, mock_clock: trio.testing.MockClock) -> AsyncIterator[Relay]:
    """With its default configuration; `mock_clock` moves its time."""
    async with running(tmp_path) as one:
        yield one
