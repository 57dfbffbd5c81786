from __future__ import annotations

import pytest

from tests.support.agent import Logged
from tests.support.log_records import events


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Logged:
    caplog.set_level("DEBUG")
    return lambda name="": events(caplog, name)
