"""`relay-agent rotate-key` beside an agent that runs; without one it is in the end-to-end tests."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.process.state import StateFolder
from relay_agent.commands import rotate_key as module
from relay_agent.identity.agent_keys import load_agent_keys, rotate, save_accepted
from relay_agent.identity.enrolment import load_or_make_key, save_enrolment
from tests.support.enrolment import TOKEN, enrolment


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path)
    load_or_make_key(folder, TOKEN)
    save_enrolment(folder, enrolment())
    return folder


@pytest.mark.parametrize(
    ("answers", "says"),
    [(True, "the old one is worth nothing now"), (False, "the relay has not accepted it yet")],
)
def test_it_waits_for_the_relay_to_accept_the_new_key(
    state: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: bool,
    says: str,
) -> None:
    now = 0.0

    def nap(seconds: float) -> None:
        nonlocal now
        now += seconds
        if answers and now > module.ACCEPT_LIMIT / 2:
            save_accepted(state, replace(load_agent_keys(state), accepted=True))

    def running(path: Path, command: str) -> dict[str, object]:
        assert (path.name, command) == ("control.sock", "rotate-key")
        rotate(state)
        return {}

    monkeypatch.setattr(module, "ask", running)
    monkeypatch.setattr(time, "sleep", nap)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    module.run(argparse.Namespace(), state)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("this agent has a new key")
    assert says in line
    assert now <= module.ACCEPT_LIMIT + 1
