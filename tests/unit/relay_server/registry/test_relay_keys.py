from __future__ import annotations

import itertools
import stat
from collections.abc import Iterator

import pytest

from protocol.process.state import StateError, StateFolder
from protocol.wire.noise import StaticKey
from relay_server.registry import relay_keys as module
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import (
    KEY,
    RelayKeys,
    has_former,
    load_or_make,
    retire,
    retire_unneeded,
    rotate,
)


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory) -> StateFolder:
    return StateFolder(tmp_path_factory.mktemp("state"))


@pytest.fixture
def registry(state: StateFolder) -> Iterator[Registry]:
    with Registry(state) as registry:
        yield registry


def publics(keys: RelayKeys) -> list[bytes]:
    return [key.public for key in keys.all]


def enrol(registry: Registry, name: str, number: int) -> bytes:
    token, key = bytes([number]) * 16, bytes([number]) * 32
    registry.invite(name, token, now=0, lifetime=9, port_range=range(11111, 11120))
    registry.redeem(token, key, 0)
    return key


def test_a_key_is_made_once(state: StateFolder, registry: Registry) -> None:
    first = load_or_make(state, registry)
    assert first.former == ()
    assert publics(load_or_make(state, registry)) == publics(first)


def test_a_missing_key_that_agents_know_is_not_made_anew(
    state: StateFolder, registry: Registry
) -> None:
    enrol(registry, "home", 1)
    with pytest.raises(StateError, match=r"relay\.key: missing; agents know this relay"):
        load_or_make(state, registry)


def test_rotated_the_old_key_is_kept_beside_the_new_one(
    state: StateFolder, registry: Registry
) -> None:
    keys = load_or_make(state, registry)
    first = keys.current
    assert not has_former(state)
    rotate(state, keys)
    assert has_former(state)
    assert keys.current.public != first.public
    assert publics(keys) == [keys.current.public, first.public]
    assert keys.successor(first.public) == keys.current.public
    assert keys.successor(keys.current.public) is None
    # As another process finds it.
    loaded = load_or_make(state, registry)
    assert publics(loaded) == publics(keys)
    for file in state.path.glob("*.key"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    retire(state, keys)
    assert publics(keys) == [keys.current.public]
    assert not has_former(state)


def test_after_several_rotations_all_of_them_are_answered(
    state: StateFolder, registry: Registry
) -> None:
    keys = load_or_make(state, registry)
    seen = set(publics(keys))
    for _ in range(3):
        rotate(state, keys)
        seen.add(keys.current.public)
        assert set(publics(load_or_make(state, registry))) == seen


def test_a_running_server_notices(state: StateFolder, registry: Registry) -> None:
    server, command = load_or_make(state, registry), load_or_make(state, registry)
    assert not server.look_again(state)
    rotate(state, command)
    assert server.look_again(state)
    assert publics(server) == publics(command)
    retire(state, command)
    assert not server.look_again(state)
    assert publics(server) == publics(command)


def test_a_server_that_cannot_read_them_all_goes_on_with_what_it_has(
    state: StateFolder, registry: Registry
) -> None:
    server, command = load_or_make(state, registry), load_or_make(state, registry)
    before = publics(server)
    rotate(state, command)
    (former,) = state.path.glob("former-*.key")
    former.chmod(0o644)
    with pytest.raises(StateError, match="chmod 600"):
        server.look_again(state)
    assert publics(server) == before
    former.chmod(0o600)
    assert server.look_again(state)
    assert publics(server) == publics(command)


@pytest.mark.parametrize("step", range(3))
def test_whenever_the_power_fails_no_key_that_agents_know_is_lost(
    state: StateFolder, registry: Registry, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    keys = load_or_make(state, registry)
    known = keys.current.public
    steps, save = itertools.count(), module._save

    def failing(*arguments: object) -> None:
        if next(steps) == step:
            raise StateError("no space left on the disk")
        save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_save", failing)
    if step < 2:
        with pytest.raises(StateError, match="no space"):
            rotate(state, keys)
        assert publics(keys) == [known]
    else:
        rotate(state, keys)
    loaded = load_or_make(state, registry)
    assert publics(loaded)[-1] == known
    assert (loaded.current.public == known) == (step < 2)


@pytest.mark.parametrize("name", [KEY, "former-0123.key"])
def test_what_is_no_key_is_told_without_its_text(
    state: StateFolder, registry: Registry, name: str
) -> None:
    load_or_make(state, registry)
    state.write_secret(name, "5ecret")
    with pytest.raises(StateError, match="expected a private key of 64 hex") as caught:
        load_or_make(state, registry)
    assert "5ecret" not in str(caught.value)


def test_a_former_key_that_others_may_read_is_refused(
    state: StateFolder, registry: Registry
) -> None:
    load_or_make(state, registry)
    state.write("former-0123.key", StaticKey.generate().private.hex(), 0o644)
    with pytest.raises(StateError, match="chmod 600"):
        load_or_make(state, registry)


def test_former_keys_go_once_nobody_needs_them(state: StateFolder, registry: Registry) -> None:
    keys = load_or_make(state, registry)
    agent = enrol(registry, "home", 1)
    registry.invite(
        "guest",
        b"g" * 16,
        now=0,
        lifetime=9,
        port_range=range(11111, 11120),
        relay_key=keys.current.public,
    )
    assert not retire_unneeded(state, keys, registry, 0)
    rotate(state, keys)
    assert not retire_unneeded(state, keys, registry, 10)  # an agent
    registry.follow("home", agent, keys.current.public)
    assert not retire_unneeded(state, keys, registry, 8.9)  # an invitation
    assert has_former(state)
    assert retire_unneeded(state, keys, registry, 9)
    assert not has_former(state)
    assert not retire_unneeded(state, keys, registry, 9)


def test_revoking_the_last_who_is_behind_is_enough(state: StateFolder, registry: Registry) -> None:
    keys = load_or_make(state, registry)
    enrol(registry, "home", 1)
    rotate(state, keys)
    registry.revoke("home", 1)
    assert retire_unneeded(state, keys, registry, 1)


def test_a_server_that_has_not_noticed_a_rotation_ends_only_what_it_knows(
    state: StateFolder, registry: Registry
) -> None:
    server = load_or_make(state, registry)
    rotate(state, server)
    command = load_or_make(state, registry)
    rotate(state, command)
    assert retire_unneeded(state, server, registry, 0)
    assert publics(load_or_make(state, registry)) == publics(command)[:2]
