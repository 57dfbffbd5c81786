from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.process.cli import command_line
from protocol.process.cli.text import span
from protocol.process.state import StateFolder
from relay_server import cli
from relay_server.__main__ import main as entry_point
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import load_or_make
from tests.support.relay_commands import Run, enrol


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


@pytest.fixture
def relay_state(state: StateFolder) -> StateFolder:
    """Of a relay with an agent, and one that is invited."""
    state.ensure()
    with Registry(state) as registry:
        load_or_make(state, registry)
    enrol(state, "home", 1)
    return state


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


def test_without_a_state_dir_the_default_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command_line, "default_state_dir", lambda program: tmp_path / program)
    assert cli.main(["agents"]) == 2
    assert f"{tmp_path / 'relay-server'}: no relay" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [(), ("run",), ("invite",), ("invitations",), ("agents",), ("revoke",)]
)
def test_help_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "--log-level" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0.9, "0s"),
        (59, "59s"),
        (60, "1m"),
        (61, "1m1s"),
        (3600, "1h"),
        (3661, "1h1m"),
        (86400 * 3 + 3600 * 2 + 61, "3d2h"),
        (86400 + 59, "1d"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_the_entry_points(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["anything", "agents", "--state-dir", str(state.path)])
    monkeypatch.delitem(sys.modules, "relay_server.__main__")  # or runpy warns of it
    for start in (entry_point, lambda: runpy.run_module("relay_server", run_name="__main__")):
        with pytest.raises(SystemExit) as caught:
            start()
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith("relay-server: ")
