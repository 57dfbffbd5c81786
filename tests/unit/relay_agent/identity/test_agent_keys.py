from __future__ import annotations

import itertools
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.process.config import ConfigError
from protocol.process.state import StateError, StateFolder
from protocol.wire.noise import StaticKey
from relay_agent.identity.agent_keys import (
    MAX_FORMER,
    AgentKeys,
    load_agent_keys,
    rotate,
    save_accepted,
)
from relay_agent.identity.enrolment import (
    FORMER_FILE,
    Enrolment,
    load_key,
    load_or_make_key,
    save_enrolment,
)
from tests.support.enrolment import OTHER_TOKEN, TOKEN, enrolment

ENROLMENT: Enrolment = enrolment()


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path)
    load_or_make_key(folder, TOKEN)
    save_enrolment(folder, ENROLMENT)
    return folder


def privates(keys: Iterable[StaticKey]) -> list[bytes]:
    return [key.private for key in keys]


def accepted(state: StateFolder) -> AgentKeys:
    own = load_agent_keys(state)
    assert own.former
    save_accepted(state, replace(own, accepted=True))
    return load_agent_keys(state)


def test_rotated_the_former_key_is_kept(state: StateFolder) -> None:
    first = load_agent_keys(state)
    assert (first.former, first.accepted) == ((), True)
    made = rotate(state)
    own = load_agent_keys(state)
    assert own.newest.private == made.newest.private != first.newest.private
    assert (privates(own.former), own.accepted) == (privates([first.newest]), False)
    for name in ("agent.key", FORMER_FILE):
        assert stat.S_IMODE((state.path / name).stat().st_mode) == 0o600
    after = accepted(state)
    assert (after.newest.public, after.accepted) == (own.newest.public, True)
    third = rotate(state)
    assert privates(third.former) == privates([own.newest, first.newest])
    assert load_agent_keys(state).newest.public == third.newest.public


def test_there_are_as_many_former_keys_as_a_backup_may_be_old(state: StateFolder) -> None:
    made = [load_agent_keys(state).newest]
    for _ in range(MAX_FORMER + 2):
        own = rotate(state)
        newest_first = privates(reversed(made))
        assert privates(own.former) == newest_first[:MAX_FORMER]
        assert privates(load_agent_keys(state).former) == newest_first[:MAX_FORMER]
        accepted(state)
        made.append(own.newest)


def test_no_second_step_before_the_first_is_accepted(state: StateFolder) -> None:
    made = rotate(state)
    again = rotate(state)
    assert again.newest.private == made.newest.private
    assert not again.accepted


def test_the_invitation_finds_the_new_key_and_another_one_drops_both(state: StateFolder) -> None:
    made = rotate(state)
    assert load_or_make_key(state, TOKEN).private == made.newest.private
    save_enrolment(state, ENROLMENT)
    assert load_agent_keys(state).former
    new = load_or_make_key(state, OTHER_TOKEN)
    save_enrolment(state, ENROLMENT)
    assert load_agent_keys(state).newest.private == new.private
    assert not load_agent_keys(state).former
    assert not (state.path / FORMER_FILE).exists()


@pytest.mark.parametrize("rotated_before", [0, 1, MAX_FORMER])
@pytest.mark.parametrize("step", range(2))
def test_whenever_the_power_fails_the_key_that_the_relay_knows_is_the_newest(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch, step: int, rotated_before: int
) -> None:
    for _ in range(rotated_before):
        rotate(state)
        accepted(state)
    known = load_agent_keys(state)
    steps, write = itertools.count(), StateFolder.write

    def failing(*arguments: object, **options: object) -> None:
        if next(steps) == step:
            raise StateError("no space left on the disk")
        write(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(StateFolder, "write", failing)
        with pytest.raises(StateError, match="no space"):
            rotate(state)
    own = load_agent_keys(state)
    assert (own.newest.private, own.accepted) == (known.newest.private, True)
    assert privates(own.former) == privates(known.former)
    # And the next try works.
    own = rotate(state)
    expected = privates([known.newest, *known.former])[:MAX_FORMER]
    assert privates(own.former) == privates(load_agent_keys(state).former) == expected


def test_a_former_key_is_as_secret_as_the_newest(state: StateFolder) -> None:
    rotate(state)
    file = state.path / FORMER_FILE
    file.chmod(0o640)
    with pytest.raises(StateError, match="chmod 600"):
        load_agent_keys(state)
    file.chmod(0o600)
    public = load_key(state).public.hex()
    for text in (f"5ecret\n{public}\n", f"{'0' * 64}\n{public}\naccepted\n5ecret\n"):
        state.write_secret(FORMER_FILE, text)
        with pytest.raises(ConfigError, match="expected a key of 64 hexadecimal digits") as caught:
            load_agent_keys(state)
        assert "5ecret" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", "one", "one two three"])
def test_what_speaks_of_no_key_of_ours_counts_for_nothing(state: StateFolder, text: str) -> None:
    state.write_secret(FORMER_FILE, text)
    own = load_agent_keys(state)
    assert (own.former, own.accepted) == ((), True)
