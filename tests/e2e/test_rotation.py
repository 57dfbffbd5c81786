"""Keys are rotated under running logins, and whoever was away follows later."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.house import House
from tests.support.ports import LOOPBACK, free_port, wait_until_listening
from tests.support.processes import run
from tests.support.programs import Agent, Relay, assert_fails
from tests.support.ssh import Login, SshServer, read_banner
from tests.support.waiting import LIMIT, eventually

NewRelay = Callable[..., Relay]
NewAgent = Callable[..., Agent]

COUNT = 'i=0; while :; do echo "$i"; i=$((i+1)); sleep 0.02; done'


class Counter:
    """A real ssh that counts: not one number may be missing, whatever is done meanwhile."""

    def __init__(self, session: subprocess.Popen[bytes]) -> None:
        self._session = session
        self._numbers = itertools.count()

    def goes_on(self) -> None:
        """Read what was counted until now, and some more."""
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert self._session.stdout is not None
            assert self._session.stdout.readline() == f"{next(self._numbers)}\n".encode()


@contextmanager
def counting(login: Login, port: int) -> Iterator[Counter]:
    with login.session(port, COUNT) as session:
        counter = Counter(session)
        counter.goes_on()
        yield counter
        counter.goes_on()


def former_keys(relay: Relay) -> list[Path]:
    return list(relay.state.glob("former-*.key"))


def public_of(text: str) -> str:
    """Which key of the relay an enrolment or a log names."""
    return text.split('relay_key = "')[1].split('"')[0]


def rotate(relay: Relay, *options: str) -> str:
    done = relay.cli("rotate-key", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def both_start_anew(house: House, login: Login) -> None:
    agent = house.agent
    before_restart = len(agent.process.log)
    house.relay.process.terminate()
    house.relay.start()
    agent.process.wait_for_line("link-up", after=before_restart)
    assert agent.process.terminate() == 0
    agent.start(house.dropbear_port)
    assert login.ssh(house.dropbear_port, "exit 3").returncode == 3


def test_a_login_lives_through_the_rotation_of_the_relays_key(
    own_house: House, login: Login
) -> None:
    relay, agent = own_house.relay, own_house.agent
    enrolment = agent.state / "enrolment.toml"
    before = public_of(enrolment.read_text())
    with counting(login, own_house.dropbear_port) as counter:
        said = rotate(relay)
        assert said == "the relay has a new key\n"
        agent.process.wait_for_line("link-up.*resumed=true")
        counter.goes_on()
        after = public_of(enrolment.read_text())
        assert after != before
        assert "relay_successor" not in enrolment.read_text()
        assert enrolment.stat().st_mode & 0o077 == 0
        # Everybody has followed, so the old key is gone.
        relay.process.wait_for_line("former-keys-retired")
        assert not former_keys(relay)
        assert relay.agents()["home"]["follows"] is True
    # What was learned holds in the next processes.
    both_start_anew(own_house, login)


def test_who_was_away_follows_later_and_old_invitations_are_good_until_they_expire(
    own_house: House, new_agent: NewAgent, dropbear: SshServer
) -> None:
    relay, home, cabin = own_house.relay, own_house.agent, new_agent("cabin")
    port = free_port()
    invitation = relay.invite("cabin", port)
    home.process.terminate()
    for _ in range(3):  # rotated more than once meanwhile
        assert "not followed yet: home; the old key answers" in rotate(relay)
    assert_fails(relay.cli("rotate-key"), "3 former keys", "--retire")
    assert len(former_keys(relay)) == 3
    assert relay.agents()["home"]["follows"] is False
    listed = relay.cli("agents")
    assert "not followed to the relay's new key yet: home\n" in listed.stderr
    cabin.join(invitation, f"ssh={LOOPBACK}:{dropbear.port}")
    cabin.start(port)
    assert read_banner(port).startswith(b"SSH-2.0-")
    relay.process.wait_for_line("agent-followed-key agent=cabin")
    assert len(former_keys(relay)) == 3
    home.start(own_house.dropbear_port)
    relay.process.wait_for_line("agent-followed-key agent=home")
    relay.process.wait_for_line("former-keys-retired")
    assert not former_keys(relay)
    assert read_banner(own_house.dropbear_port).startswith(b"SSH-2.0-")


def test_a_rotation_while_the_relay_is_down(own_house: House, login: Login) -> None:
    own_house.relay.process.terminate()
    assert "not followed yet: home" in rotate(own_house.relay)
    own_house.relay.start()
    own_house.relay.process.wait_for_line("agent-followed-key agent=home")
    assert login.ssh(own_house.dropbear_port, "exit 3").returncode == 3


def test_an_old_key_that_is_retired_at_once(
    own_house: House, new_agent: NewAgent, dropbear: SshServer, login: Login
) -> None:
    """Who is here follows before; who is not, and who is only invited, needs a new invitation."""
    relay, away = own_house.relay, new_agent("away")
    away.join(relay.invite("away", free_port()), f"ssh={LOOPBACK}:{dropbear.port}")
    dead = relay.invite("dead", free_port())
    with counting(login, own_house.dropbear_port):
        said = rotate(relay, "--now")
    assert said.splitlines() == [
        "the relay has a new key",
        "the old key is worth nothing now",
        "cancelled, since they carry the old key: invitations of dead",
        "not followed, so they need a new invitation: away",
    ]
    assert not former_keys(relay)
    done = new_agent("dead").try_join(dead, f"ssh={LOOPBACK}:{dropbear.port}")
    assert_fails(done, "not the relay whose key we hold")
    away.start().wait_for_line("dial-failed.*not the relay whose key we hold")
    # The invitation is all it takes.
    away.process.terminate()
    away.join(relay.invite("away"), f"ssh={LOOPBACK}:{dropbear.port}")
    away.start().wait_for_line("service-up")


def test_an_agent_that_cannot_save_the_new_key_keeps_the_old_one(own_house: House) -> None:
    relay, agent = own_house.relay, own_house.agent
    enrolment = agent.state / "enrolment.toml"
    text = enrolment.read_text()
    # A folder in its place fails for root too.
    enrolment.unlink()
    enrolment.mkdir()
    assert "not followed yet: home" in rotate(relay)
    agent.process.wait_for_line("relay-key-not-saved")
    assert read_banner(own_house.dropbear_port).startswith(b"SSH-2.0-")
    assert relay.agents()["home"]["follows"] is False
    enrolment.rmdir()
    enrolment.write_text(text)
    agent.process.terminate()
    agent.start(own_house.dropbear_port)
    relay.process.wait_for_line("agent-followed-key agent=home")


def rotate_agent(agent: Agent) -> str:
    argv = [*agent.command, "rotate-key", "--state-dir", str(agent.state)]
    done = run(argv, environment=agent.environment)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr


def test_a_login_lives_through_the_rotation_of_the_agents_key(
    own_house: House, new_agent: NewAgent, login: Login
) -> None:
    relay, agent, thief = own_house.relay, own_house.agent, new_agent("thief")
    shutil.copytree(agent.state, thief.state, ignore=shutil.ignore_patterns("*.sock"))
    with counting(login, own_house.dropbear_port) as counter:
        # On a machine this busy the command may not wait for as long as the relay takes.
        assert rotate_agent(agent).startswith("this agent has a new key")
        agent.process.wait_for_line("agent-key-rotated")
        relay.process.wait_for_line("agent-key-rotated agent=home")
        agent.process.wait_for_line("link-up.*resumed=true")
        counter.goes_on()
        # What was stolen before is worth nothing.
        thief.start().wait_for_line("link-denied.*revoked")
        counter.goes_on()
    for name in ("agent.key", "former.key"):
        assert (agent.state / name).stat().st_mode & 0o777 == 0o600
    # In the next processes too.
    both_start_anew(own_house, login)


def test_an_agents_new_key_waits_for_the_relay_and_a_backup_of_that_knows_the_old_one(
    own_house: House, login: Login
) -> None:
    relay, agent = own_house.relay, own_house.agent
    agent.process.terminate()
    relay.process.terminate()
    backup = shutil.copytree(relay.state, relay.state.with_name("backup"))
    said = rotate_agent(agent)
    assert said == "this agent has a new key; the relay hears of it once relay-agent runs\n"
    key = (agent.state / "agent.key").read_text()
    assert rotate_agent(agent).splitlines()[0].startswith("the relay has not accepted the last")
    assert (agent.state / "agent.key").read_text() == key
    relay.start()
    agent.start(own_house.dropbear_port)
    relay.process.wait_for_line("agent-key-rotated agent=home")
    relay.process.terminate()
    shutil.rmtree(relay.state)
    shutil.copytree(backup, relay.state)
    relay.start()
    relay.process.wait_for_line("agent-key-rotated agent=home")
    wait_until_listening(own_house.dropbear_port)
    assert login.ssh(own_house.dropbear_port, "exit 3").returncode == 3


@pytest.mark.parametrize("options", [("--now", "--retire"), ("home",)])
def test_mistyped(own_house: House, options: tuple[str, ...]) -> None:
    done = own_house.relay.cli("rotate-key", *options)
    assert done.returncode == 2
    assert not former_keys(own_house.relay)


def test_while_nothing_was_ever_rotated(own_house: House) -> None:
    assert_fails(own_house.relay.cli("rotate-key", "--retire"), "no former key", status=1)
    eventually(lambda: read_banner(own_house.dropbear_port), what="a banner", limit=LIMIT)
