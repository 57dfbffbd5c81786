from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.process.address import HostPort
from protocol.process.config import ConfigError
from protocol.process.state import StateError, StateFolder
from relay_agent.identity.enrolment import (
    ENROLMENT_FILE,
    JOINING_FILE,
    KEY_FILE,
    load_enrolment,
    load_key,
    load_or_make_key,
    save_enrolment,
    save_relay,
)
from tests.support.enrolment import OTHER_TOKEN, TOKEN, enrolment


def test_what_is_saved_is_loaded(state: StateFolder) -> None:
    key = load_or_make_key(state, TOKEN)
    save_enrolment(state, enrolment())
    assert load_enrolment(state) == enrolment()
    assert load_key(state).private == key.private


def test_the_key_is_on_the_disk_before_anybody_sees_its_token(state: StateFolder) -> None:
    key = load_or_make_key(state, TOKEN)
    file = state.path / JOINING_FILE
    assert key.private.hex() in file.read_text()
    assert TOKEN.hex() not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_same_invitation_finds_the_same_key_before_and_after_it_was_saved(
    state: StateFolder,
) -> None:
    key = load_or_make_key(state, TOKEN)
    assert load_or_make_key(state, TOKEN).private == key.private
    save_enrolment(state, enrolment())
    assert not (state.path / JOINING_FILE).exists()
    assert load_or_make_key(state, TOKEN).private == key.private
    assert not (state.path / JOINING_FILE).exists()
    save_enrolment(state, enrolment(port=11113))
    assert load_key(state).private == key.private
    assert load_enrolment(state) == enrolment(port=11113)


def test_a_new_invitation_gets_a_new_key_and_leaves_the_old_one_until_it_is_saved(
    state: StateFolder,
) -> None:
    old = load_or_make_key(state, TOKEN)
    save_enrolment(state, enrolment())
    new = load_or_make_key(state, OTHER_TOKEN)
    assert new.private != old.private
    assert load_key(state).private == old.private
    assert load_enrolment(state) == enrolment()
    save_enrolment(state, enrolment("other"))
    assert load_key(state).private == new.private
    assert load_enrolment(state) == enrolment("other")


def test_without_an_enrolment_the_user_is_told_to_join(state: StateFolder, tmp_path: Path) -> None:
    for folder in (state, StateFolder(tmp_path / "missing")):
        with pytest.raises(ConfigError, match="not joined yet; run: relay-agent join"):
            load_enrolment(folder)
        with pytest.raises(ConfigError, match=r"agent\.key: missing; run relay-agent join"):
            load_key(folder)


@pytest.mark.parametrize("text", ["", "\n", "secret" * 11, "0" * 63, "0" * 65, "G" + "0" * 63])
def test_a_key_that_is_none_is_refused_and_not_shown(state: StateFolder, text: str) -> None:
    state.write_secret(KEY_FILE, text)
    with pytest.raises(ConfigError, match="expected a key of 64 hexadecimal digits") as refused:
        load_key(state)
    assert text.strip() == "" or text not in str(refused.value)


def test_a_key_that_others_may_read_is_refused(state: StateFolder) -> None:
    load_or_make_key(state, TOKEN)
    save_enrolment(state, enrolment())
    (state.path / KEY_FILE).chmod(0o640)
    with pytest.raises(StateError, match="chmod 600"):
        load_key(state)


def write(state: StateFolder, **changes: str) -> None:
    parts = {
        "name": '"home"',
        "hosts": '["h:1"]',
        "relay_key": f'"{"0" * 64}"',
        "services": "{}",
    } | changes
    text = "".join(f"{key} = {value}\n" for key, value in parts.items())
    state.write(ENROLMENT_FILE, text)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("hosts", "[]", "hosts: expected 1 to 8 items, not 0"),
        ("hosts", "[" + '"h:1",' * 9 + "]", "hosts: expected 1 to 8 items, not 9"),
        ("hosts", '["h"]', "hosts: expected HOST:PORT"),
        ("relay_key", f'"{"0" * 62}"', "relay_key: expected 64 hexadecimal digits"),
        ("relay_key", "0", "relay_key: expected 64 hexadecimal digits"),
        ("services", '{ssh = {target = "h:1"}}', "services.ssh.port: missing"),
        ("extra", "1", "extra: unknown key"),
    ],
)
def test_an_edited_file_is_answered_with_key_and_expectation(
    state: StateFolder, key: str, value: str, expected: str
) -> None:
    write(state, **{key: value})
    with pytest.raises(ConfigError) as refused:
        load_enrolment(state)
    assert str(refused.value).startswith(f"{state.path / ENROLMENT_FILE}: {expected}")


def test_the_most_hosts_and_no_service_are_fine(state: StateFolder) -> None:
    write(state, hosts="[" + '"h:1",' * 8 + "]")
    loaded = load_enrolment(state)
    assert len(loaded.relay.hosts) == 8
    assert loaded.services == ()


@given(name=st.text(st.characters(exclude_categories=["Cs"]), max_size=64))
def test_any_name_the_relay_gives_survives(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    state = StateFolder(tmp_path_factory.getbasetemp())
    save_enrolment(state, enrolment(name))
    assert load_enrolment(state) == enrolment(name)


# --- the relay's keys


def relay_keys(state: StateFolder) -> tuple[bytes, bytes | None]:
    relay = load_enrolment(state).relay
    return relay.key, relay.successor


def test_a_successor_of_the_relays_key_is_saved_and_loaded(state: StateFolder) -> None:
    load_or_make_key(state, TOKEN)
    save_enrolment(state, enrolment())
    assert relay_keys(state) == (bytes(range(32)), None)
    told = replace(enrolment().relay, successor=b"n" * 32)
    save_relay(state, told)
    assert load_enrolment(state) == replace(enrolment(), relay=told)
    save_relay(state, replace(told, key=b"n" * 32, successor=None))
    assert relay_keys(state) == (b"n" * 32, None)


def test_only_the_keys_are_changed(state: StateFolder) -> None:
    """The hosts were edited since the agent started."""
    save_enrolment(state, enrolment())
    relay = load_enrolment(state).relay
    save_enrolment(state, replace(enrolment(), relay=replace(relay, hosts=(HostPort("new", 1),))))
    save_relay(state, replace(relay, successor=b"n" * 32))
    assert load_enrolment(state).relay.hosts == (HostPort("new", 1),)


def test_an_enrolment_that_an_editor_broke_is_not_written_over(state: StateFolder) -> None:
    state.write(ENROLMENT_FILE, "name = 3")
    with pytest.raises(StateError, match=r"enrolment\.toml"):
        save_relay(state, enrolment().relay)
    assert state.read(ENROLMENT_FILE) == "name = 3"
