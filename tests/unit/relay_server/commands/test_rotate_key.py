from __future__ import annotations

import json
from typing import Any

import pytest

from protocol.process.cli.command import CommandFailed
from protocol.process.state import StateFolder
from protocol.wire.invitation import Invitation
from relay_server.agents import status as relay_status
from relay_server.commands import rotate_key
from relay_server.registry import open as commands_state
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import MAX_FORMER, ROTATION_LOCK
from tests.support.relay_commands import Run, enrol, keys_of


def test_rotating_keeps_the_old_key_for_those_behind(run: Run, relay_state: StateFolder) -> None:
    old = keys_of(relay_state).current.public
    assert run("rotate-key") == (
        0,
        "",
        "the relay has a new key\nnot followed yet: home; the old key answers until they have\n",
    )
    keys = keys_of(relay_state)
    assert [key.public for key in keys.former] == [old]
    assert run("agents")[2].endswith("not followed to the relay's new key yet: home\n")
    assert json.loads(run("agents", "--json")[1])[0]["follows"] is False
    with Registry(relay_state) as registry:
        registry.follow("home", bytes([1]) * 32, keys.current.public)
    assert json.loads(run("agents", "--json")[1])[0]["follows"] is True
    # New invitations carry the new key.
    _, out, _ = run("invite", "cabin", "--host", "vps")
    assert Invitation.decode(out).relay_key == keys.current.public


def test_rotating_at_once_ends_the_old_key_and_names_who_is_lost(
    run: Run, relay_state: StateFolder
) -> None:
    run("invite", "cabin", "--host", "vps")
    assert run("rotate-key", "--now")[2].splitlines() == [
        "the relay has a new key",
        "the old key is worth nothing now",
        "cancelled, since they carry the old key: invitations of cabin",
        "not followed, so they need a new invitation: home",
    ]
    assert keys_of(relay_state).former == ()
    assert "no invitation is pending" in run("invitations")[2]


def test_so_many_former_keys_and_no_more(run: Run, relay_state: StateFolder) -> None:
    for _ in range(MAX_FORMER):
        assert run("rotate-key")[0] == 0
    before = keys_of(relay_state).current.public
    status, _, err = run("rotate-key")
    assert (status, "3 former keys are in use still" in err) == (1, True)
    assert keys_of(relay_state).current.public == before
    assert "not followed, so they need a new invitation: home" in run("rotate-key", "--retire")[2]
    keys = keys_of(relay_state)
    assert (keys.current.public, keys.former) == (before, ())
    assert run("rotate-key", "--retire")[2] == "relay-server: there is no former key to end\n"
    for _ in range(MAX_FORMER):
        assert run("rotate-key")[0] == 0
    assert run("rotate-key", "--now")[0] == 0


def test_agents_that_are_here_are_waited_for(
    run: Run, relay_state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(_: object, command: str) -> dict[str, Any]:
        asked.append(command)
        here = {"name": "home", "following": True}
        return {"agents": [here, {"name": "cabin", "following": False}]}

    def follow(_: float) -> None:
        with Registry(relay_state) as registry:
            registry.follow("home", bytes([1]) * 32, keys_of(relay_state).current.public)

    enrol(relay_state, "cabin", 2)
    for module in (relay_status, commands_state):
        monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr("time.sleep", follow)
    _, _, err = run("rotate-key")
    assert err.splitlines()[1].startswith("not followed yet: cabin;")
    assert asked == ["agents", "refresh"]


def test_agents_that_are_here_are_not_waited_for_for_ever(
    run: Run, relay_state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, rotate_key.FOLLOW_LIMIT - 0.1, rotate_key.FOLLOW_LIMIT])
    for module in (relay_status, commands_state):
        monkeypatch.setattr(
            module, "ask", lambda *_: {"agents": [{"name": "home", "following": True}]}
        )
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert "not followed yet: home" in run("rotate-key")[2]
    assert next(clock, None) is None


def test_a_server_that_does_not_answer_is_told_of(
    run: Run, relay_state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(_: object, command: str) -> None:
        if command == "refresh":
            raise CommandFailed("it hangs")

    for module in (relay_status, commands_state):
        monkeypatch.setattr(module, "ask", ask)
    status, _, err = run("rotate-key")
    assert status == 1
    assert err == "relay-server: the key is rotated, but not in use yet: it hangs\n"


def test_one_rotation_at_a_time(run: Run, relay_state: StateFolder) -> None:
    with relay_state.lock(ROTATION_LOCK):
        status, _, err = run("rotate-key")
    assert (status, "already in use by another process" in err) == (2, True)
    assert keys_of(relay_state).former == ()


def test_rotating_needs_a_relay(run: Run) -> None:
    status, _, err = run("rotate-key")
    assert (status, "no relay has its state here" in err) == (2, True)
