"""What every command does with a state folder that is not there, or is somebody else's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from protocol.process.state import StateFolder
from tests.support.relay_commands import Run


@pytest.fixture
def somebody_else(relay_state: StateFolder) -> Iterator[None]:
    """Run as a user who may not look into the folder."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        relay_state.path.chmod(0)
        yield
        relay_state.path.chmod(0o700)


@pytest.mark.usefixtures("somebody_else")
@pytest.mark.parametrize("command", [("agents",), ("status",), ("revoke", "home")])
def test_a_folder_of_somebody_elses_is_one_line(run: Run, command: tuple[str, ...]) -> None:
    status, out, err = run(*command)
    assert (status, out) == (2, "")
    assert "no access" in err or "not writable" in err


@pytest.mark.parametrize("command", [("invitations",), ("agents",), ("revoke", "home")])
def test_looking_makes_nothing(run: Run, state: StateFolder, command: tuple[str, ...]) -> None:
    status, out, err = run(*command)
    assert (status, out) == (2, "")
    assert err.startswith(f"relay-server: {state.path}: no relay has its state here; ")
    assert not state.path.exists()
