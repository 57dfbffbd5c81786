from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.process.cli.command import CommandFailed
from protocol.process.state import StateFolder
from relay_server.agents import status as relay_status
from relay_server.commands import upgrade
from tests.support.relay_commands import Run


def upgraded(
    run: Run, state: StateFolder, monkeypatch: pytest.MonkeyPatch, ages: Iterator[float | None]
) -> tuple[int, str, str]:
    """`relay-server upgrade` where a second passes between two looks, and the relay has an age."""
    state.ensure()
    now = itertools.count()

    def ask(_: object, command: str) -> dict[str, Any]:
        if command == "upgrade":
            return {}
        age = next(ages)
        if age is None:
            raise CommandFailed("between the two")
        return {"age": age, "version": "2.0", "agents": [{"streams": [{}, {}]}]}

    for module in (upgrade, relay_status):
        monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    monkeypatch.setattr("time.sleep", lambda _: None)
    return run("upgrade")


def test_an_upgrade_is_over_when_a_younger_one_answers(
    run: Run, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = upgraded(run, state, monkeypatch, iter([100.0, None, 0.5]))
    assert answer == (0, "relay-server 2.0 goes on, with 2 visitors\n", "")


def test_an_upgrade_that_does_not_come_about_is_told_of(
    run: Run, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = upgraded(run, state, monkeypatch, itertools.repeat(1000.0))
    assert answer == (1, "", "relay-server: the relay goes on as it was; its log says why\n")
