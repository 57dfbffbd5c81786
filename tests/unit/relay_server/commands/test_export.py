from __future__ import annotations

import sys

import pytest

from protocol.process.state import StateFolder
from tests.support.relay_commands import Run, enrol


def test_no_terminal_is_shown_the_keys(
    run: Run, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.ensure()
    enrol(state, "home", 1)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    status, out, err = run("export", "-")
    assert (status, out) == (2, "")
    assert "expected a file or a pipe" in err


def test_a_file_that_cannot_be_written_is_named(run: Run, state: StateFolder) -> None:
    state.ensure()
    enrol(state, "home", 1)
    status, _, err = run("export", "/dev/none/relay.backup")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("relay-server: /dev/none/relay.backup: ")
