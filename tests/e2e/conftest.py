"""Two SSH servers for the whole run, and a relay with its agent for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fixtures import (
    dropbear,
    giving_up_after,
    login,
    new_agent,
    new_relay,
    openssh,
    target,
)
from tests.support.house import Door, House, run_house
from tests.support.ssh import SshServer

__all__ = ["dropbear", "login", "new_agent", "new_relay", "openssh", "target"]

# The harness gives up in good time wherever it waits. This is for what a test reads from a pipe
# itself, so that a byte that never comes fails one test and does not hang the run.
TEST_LIMIT = 180.0


@pytest.fixture(autouse=True)
def no_test_hangs() -> Iterator[None]:
    with giving_up_after(TEST_LIMIT):
        yield


@pytest.fixture(scope="module")
def house(
    tmp_path_factory: pytest.TempPathFactory, dropbear: SshServer, openssh: SshServer
) -> Iterator[House]:
    """For tests that leave it as they found it."""
    yield from run_house(tmp_path_factory.mktemp("house"), dropbear, openssh)


@pytest.fixture
def own_house(tmp_path: Path, dropbear: SshServer, openssh: SshServer) -> Iterator[House]:
    """For tests that kill, revoke or restart something."""
    yield from run_house(tmp_path, dropbear, openssh)


@pytest.fixture(params=["dropbear", "openssh"])
def door(
    request: pytest.FixtureRequest, house: House, dropbear: SshServer, openssh: SshServer
) -> Door:
    if request.param == "dropbear":
        return Door(port=house.dropbear_port, server=dropbear)
    return Door(port=house.openssh_port, server=openssh)
