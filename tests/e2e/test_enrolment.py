"""Invitations and what becomes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.support.blocking_sockets import Target, visit
from tests.support.house import House
from tests.support.ports import LOOPBACK, free_port, listens, wait_until_closed
from tests.support.programs import Agent, Relay, assert_fails, only_line
from tests.support.ssh import Login, SshServer, read_banner

NewRelay = Callable[..., Relay]
NewAgent = Callable[..., Agent]


@pytest.fixture
def relay(new_relay: NewRelay) -> Relay:
    relay = new_relay()
    relay.start()
    return relay


def test_the_invitation_from_standard_input(
    relay: Relay, new_agent: NewAgent, dropbear: SshServer
) -> None:
    port, agent = free_port(), new_agent()
    invitation = relay.invite("home", port)
    # As pasted from a mail: wrapped, indented, in capitals.
    pasted = f"  {invitation[:40].upper()}\n  {invitation[40:]}\n\n"
    done = agent.try_join("", f"ssh={LOOPBACK}:{dropbear.port}", stdin=pasted)
    assert done.returncode == 0, done.stderr
    agent.start(port)
    assert read_banner(port).startswith(b"SSH-2.0-")


def test_several_services_and_a_silent_one(
    relay: Relay, new_agent: NewAgent, dropbear: SshServer, target: Target
) -> None:
    first, second, agent = free_port(), free_port(), new_agent()
    agent.join(
        relay.invite("home", first, second),
        f"ssh={LOOPBACK}:{dropbear.port}",
        f"raw={LOOPBACK}:{target.port}@{second}",
    )
    agent.start(first, second)
    assert read_banner(first).startswith(b"SSH-2.0-")
    with visit(second), target.accept():
        pass


def test_joining_again_after_each_kind_of_failure(
    relay: Relay, new_agent: NewAgent, dropbear: SshServer
) -> None:
    port, agent = free_port(), new_agent()
    invitation = relay.invite("home", port)
    nobody = free_port()
    # Mistyped; no SSH server there; a port that is not granted; no relay there.
    assert_fails(agent.try_join(invitation[:-3]), "invitation")
    assert_fails(agent.try_join(invitation, f"ssh={LOOPBACK}:{nobody}"), str(nobody))
    wrong_port = f"ssh={LOOPBACK}:{dropbear.port}@{nobody}"
    assert_fails(agent.try_join(invitation, wrong_port), str(nobody), str(port))
    relay.process.kill()
    service = f"ssh={LOOPBACK}:{dropbear.port}@{port}"
    assert_fails(agent.try_join(invitation, service), f"{LOOPBACK}:{relay.port}")
    relay.start()
    agent.join(invitation, service)
    # And once more: the token stays good for the key that showed it first.
    agent.join(invitation, service)
    agent.start(port)
    assert read_banner(port).startswith(b"SSH-2.0-")


def test_an_invitation_is_for_one_agent(
    relay: Relay, new_agent: NewAgent, dropbear: SshServer
) -> None:
    port, first, second = free_port(), new_agent("first"), new_agent("second")
    invitation, service = relay.invite("home", port), f"ssh={LOOPBACK}:{dropbear.port}"
    first.join(invitation, service)
    assert_fails(second.try_join(invitation, service), "invitation")
    first.start(port)
    assert read_banner(port).startswith(b"SSH-2.0-")


def test_a_cancelled_invitation(relay: Relay, new_agent: NewAgent, dropbear: SshServer) -> None:
    invitation = relay.invite("home", free_port())
    listed = relay.cli("invitations", "--json")
    assert "home" in listed.stdout
    json.loads(listed.stdout)
    assert relay.cli("invitations", "--cancel", "home").returncode == 0
    assert "home" not in relay.cli("invitations", "--json").stdout
    done = new_agent().try_join(invitation, f"ssh={LOOPBACK}:{dropbear.port}")
    assert_fails(done, "invitation")


def test_inviting_a_name_again_keeps_its_ports_and_revokes_its_key(
    own_house: House, new_agent: NewAgent, dropbear: SshServer, login: Login
) -> None:
    """A router was reset and enrols again."""
    relay, old, new = own_house.relay, own_house.agent, new_agent("new")
    invitation = relay.invite("home")
    # Until it is used nothing changes.
    assert login.ssh(own_house.dropbear_port, "exit 3").returncode == 3
    # The first of its ports is the one it had.
    new.join(invitation, f"ssh={LOOPBACK}:{dropbear.port}@{own_house.dropbear_port}")
    old.process.wait_for_line("link-denied.*revoked")
    wait_until_closed(own_house.openssh_port)
    new.start(own_house.dropbear_port)
    assert login.ssh(own_house.dropbear_port, "exit 3").returncode == 3
    assert not listens(own_house.openssh_port)


def test_joining_while_the_agent_runs_says_so(own_house: House) -> None:
    done = own_house.agent.try_join(own_house.invitation)
    assert_fails(done)
    assert own_house.agent.process.running


def test_invited_while_the_relay_is_down(
    new_relay: NewRelay, new_agent: NewAgent, dropbear: SshServer
) -> None:
    relay, port, agent = new_relay(), free_port(), new_agent()
    invitation = relay.invite("home", port, hosts=[f"{LOOPBACK}:{relay.port}"])
    relay.start()
    agent.join(invitation, f"ssh={LOOPBACK}:{dropbear.port}")


def test_an_invitation_to_several_hosts(
    relay: Relay, new_agent: NewAgent, dropbear: SshServer
) -> None:
    """The first does not answer, as behind a firewall that lets only 443 out."""
    hosts = [f"{LOOPBACK}:{free_port()}", f"{LOOPBACK}:{relay.port}"]
    port, agent = free_port(), new_agent()
    agent.join(relay.invite("home", port, hosts=hosts), f"ssh={LOOPBACK}:{dropbear.port}")
    agent.start(port)
    assert read_banner(port).startswith(b"SSH-2.0-")


def test_no_secret_is_logged_or_in_a_command_line(own_house: House) -> None:
    secrets = [own_house.invitation.removeprefix("relay1_")]
    for folder in (own_house.relay.state, own_house.agent.state):
        keys = list(folder.glob("*.key"))
        assert keys, f"no key in {folder}"
        for key in keys:
            assert key.stat().st_mode & 0o077 == 0
            secrets.append(key.read_text().strip())
    for process in (own_house.relay.process, own_house.agent.process):
        said = process.describe().lower()  # the command line and all output
        for secret in secrets:
            assert secret.lower() not in said
    # The relay keeps the token's hash alone.
    for file in own_house.relay.state.iterdir():
        if file.is_file():
            assert own_house.invitation.encode() not in file.read_bytes()


def test_the_first_line_of_standard_output_is_the_invitation(relay: Relay) -> None:
    done = relay.cli("invite", "home")
    assert done.returncode == 0
    assert only_line(done.stdout).startswith("relay1_")
    assert "relay-agent join" in done.stderr
    assert re.search(r"^home may publish port 111\d\d\.$", done.stderr, re.MULTILINE), done.stderr
