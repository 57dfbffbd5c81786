from __future__ import annotations

import itertools
import stat
from pathlib import Path

import pytest

from protocol.process.config import ConfigError
from protocol.process.state import StateError, StateFolder
from relay_agent.identity.agent_keys import AgentKeys, load_agent_keys, rotate, save_accepted
from relay_agent.identity.enrolment import (
    FORMER_FILE,
    Enrolment,
    load_key,
    load_or_make_key,
    save_enrolment,
)
from tests.unit.relay_agent.identity.test_enrolment import OTHER_TOKEN, TOKEN, enrolment

ENROLMENT: Enrolment = enrolment()


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path)
    load_or_make_key(folder, TOKEN)
    save_enrolment(folder, ENROLMENT)
    return folder


def accepted(state: StateFolder) -> AgentKeys:
    own = load_agent_keys(state)
    assert own.former is not None
    save_accepted(state, AgentKeys(own.newest, own.former, accepted=True))
    return load_agent_keys(state)


def test_rotated_there_are_two_until_the_next_time(state: StateFolder) -> None:
    first = load_agent_keys(state)
    assert (first.former, first.accepted) == (None, True)
    made = rotate(state)
    own = load_agent_keys(state)
    assert own.newest.private == made.newest.private != first.newest.private
    assert own.former is not None
    assert (own.former.private, own.accepted) == (first.newest.private, False)
    for name in ("agent.key", FORMER_FILE):
        assert stat.S_IMODE((state.path / name).stat().st_mode) == 0o600
    after = accepted(state)
    assert (after.newest.public, after.accepted) == (own.newest.public, True)
    third = rotate(state)
    assert third.former is not None
    assert third.former.public == own.newest.public
    assert load_agent_keys(state).newest.public == third.newest.public


def test_no_second_step_before_the_first_is_accepted(state: StateFolder) -> None:
    made = rotate(state)
    again = rotate(state)
    assert again.newest.private == made.newest.private
    assert not again.accepted


def test_the_invitation_finds_the_new_key_and_another_one_drops_both(state: StateFolder) -> None:
    made = rotate(state)
    assert load_or_make_key(state, TOKEN).private == made.newest.private
    save_enrolment(state, ENROLMENT)
    assert load_agent_keys(state).former is not None
    new = load_or_make_key(state, OTHER_TOKEN)
    save_enrolment(state, ENROLMENT)
    assert load_agent_keys(state).newest.private == new.private
    assert load_agent_keys(state).former is None
    assert not (state.path / FORMER_FILE).exists()


@pytest.mark.parametrize("rotated_before", [False, True])
@pytest.mark.parametrize("step", range(2))
def test_whenever_the_power_fails_the_key_that_the_relay_knows_is_the_newest(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch, step: int, rotated_before: bool
) -> None:
    if rotated_before:
        rotate(state)
        accepted(state)
    known = load_agent_keys(state).newest
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
    assert (own.newest.private, own.accepted) == (known.private, True)
    # And the next try works.
    own = rotate(state)
    assert own.former is not None
    assert own.former.private == known.private == load_agent_keys(state).former.private  # type: ignore[union-attr]


def test_a_former_key_is_as_secret_as_the_newest(state: StateFolder) -> None:
    rotate(state)
    file = state.path / FORMER_FILE
    file.chmod(0o640)
    with pytest.raises(StateError, match="chmod 600"):
        load_agent_keys(state)
    file.chmod(0o600)
    public = load_key(state).public.hex()
    state.write_secret(FORMER_FILE, f"5ecret\n{public}\n")
    with pytest.raises(ConfigError, match="expected a key of 64 hexadecimal digits") as caught:
        load_agent_keys(state)
    assert "5ecret" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", "one", "one two three"])
def test_what_speaks_of_no_key_of_ours_counts_for_nothing(state: StateFolder, text: str) -> None:
    state.write_secret(FORMER_FILE, text)
    own = load_agent_keys(state)
    assert (own.former, own.accepted) == (None, True)
