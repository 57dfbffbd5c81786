from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from protocol.process.cli import command_line
from protocol.process.state import StateFolder
from relay_server import cli
from relay_server.__main__ import main as entry_point


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
