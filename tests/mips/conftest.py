"""The fixtures of the end-to-end tests, for tests that take minutes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fixtures import dropbear, giving_up_after, login, new_relay

__all__ = ["dropbear", "login", "new_relay"]

# Many times what a login takes on an emulated processor.
TEST_LIMIT = 180.0


@pytest.fixture(autouse=True)
def no_test_hangs() -> Iterator[None]:
    with giving_up_after(TEST_LIMIT):
        yield
