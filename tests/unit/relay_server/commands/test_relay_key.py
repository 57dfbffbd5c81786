from __future__ import annotations

import pytest

from protocol.process.state import StateFolder
from protocol.wire.invitation import Invitation
from protocol.wire.noise import StaticKey
from tests.support.relay_commands import Run, enrol


def test_the_key_is_made_once(run: Run, state: StateFolder) -> None:
    keys = {
        Invitation.decode(run("invite", name, "--host", "vps")[1]).relay_key for name in ("a", "b")
    }
    assert len(keys) == 1


def test_a_missing_key_stops_a_relay_that_agents_know(run: Run, state: StateFolder) -> None:
    run("invite", "home", "--host", "vps")
    (state.path / "relay.key").unlink()
    status, out, err = run("invite", "home")
    assert (status, out) == (2, "")
    assert err.startswith(f"relay-server: {state.path / 'relay.key'}: missing; ")
    run("invitations", "--cancel", "home")
    enrol(state, "home", 1)
    assert run("invite", "home")[0] == 2
    run("revoke", "home")
    assert run("invite", "home")[0] == 0


@pytest.mark.parametrize("text", ["", "zz" * 32, "00" * 31, "00" * 33])
def test_a_broken_key_is_not_shown(run: Run, state: StateFolder, text: str) -> None:
    state.ensure()
    state.write_secret("relay.key", text)
    status, _, err = run("invite", "home", "--host", "vps")
    assert status == 2
    assert err.endswith("relay.key: expected a private key of 64 hexadecimal digits\n")
    assert not text or text not in err


def test_a_key_that_others_may_read_is_refused(run: Run, state: StateFolder) -> None:
    run("invite", "home", "--host", "vps")
    (state.path / "relay.key").chmod(0o644)
    status, _, err = run("invite", "home")
    assert (status, err.count("\n")) == (2, 1)
    assert f"run: chmod 600 {state.path / 'relay.key'}" in err


def test_of_two_first_commands_one_makes_the_key(
    run: Run, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = StaticKey.generate()
    read = StateFolder.read_secret

    def missed(self: StateFolder, name: str) -> str | None:
        monkeypatch.setattr(StateFolder, "read_secret", read)
        self.write_secret(name, other.private.hex())  # the other one, a moment later
        return None

    monkeypatch.setattr(StateFolder, "read_secret", missed)
    _, out, _ = run("invite", "home", "--host", "vps")
    assert Invitation.decode(out).relay_key == other.public
