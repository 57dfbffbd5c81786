"""Deaths and returns: of the agent, of the relay, of the agent's right to be there."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.blocking_sockets import PATTERN, Target, pair, receive, visit, was_reset
from tests.support.house import House
from tests.support.ports import (
    LOOPBACK,
    free_port,
    listens,
    wait_until_closed,
    wait_until_listening,
)
from tests.support.processes import ProcessUnderTest, program
from tests.support.programs import Agent, Relay, services
from tests.support.ssh import Login, SshServer, read_banner
from tests.support.waiting import eventually


def wait_for_banner(port: int) -> None:
    """Wait until the SSH server behind `port` answers. In how many seconds is the lab's to say."""
    eventually(
        lambda: read_banner(port).startswith(b"SSH-2.0-"),
        what=f"an SSH banner through port {port}",
    )


def test_killing_the_agent_is_a_reset_and_never_an_end(own_house: House) -> None:
    with pair(own_house.raw_port, own_house.target) as (visitor, accepted):
        own_house.agent.process.kill()
        assert was_reset(accepted)
        # The relay waits for the session to be resumed; a new process cannot.
        own_house.agent.start()
        assert was_reset(visitor)
    with pair(own_house.raw_port, own_house.target):
        pass


def test_killing_the_relay_is_a_reset_and_never_an_end(own_house: House) -> None:
    with pair(own_house.raw_port, own_house.target) as (visitor, accepted):
        own_house.relay.process.kill()
        assert was_reset(visitor)
        own_house.relay.start()
        assert was_reset(accepted)
    wait_until_listening(own_house.raw_port)
    with pair(own_house.raw_port, own_house.target):
        pass


@pytest.mark.parametrize("killed", ["agent", "relay"])
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_copy_that_is_cut_short_fails(
    own_house: House, login: Login, tmp_path: Path, killed: str, way: str
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(PATTERN * 64)
    ends = (
        [str(source), f"{LOOPBACK}:{copy}"] if way == "up" else [f"{LOOPBACK}:{source}", str(copy)]
    )
    # Slow enough, in kbit/s, to be met half-way.
    argv = [program("scp"), *login.options, "-q", "-O", "-l", "100000"]
    argv += ["-P", str(own_house.dropbear_port), *ends]
    with ProcessUnderTest(argv, environment=login.environment) as scp:
        eventually(
            lambda: copy.exists() and copy.stat().st_size > 2**20,
            what="the copy is under way",
        )
        side = own_house.agent if killed == "agent" else own_house.relay
        side.process.kill()
        side.start()
        assert scp.wait() == 1, scp.describe()
    assert copy.stat().st_size < source.stat().st_size


def test_a_killed_agent_takes_its_port_back(own_house: House) -> None:
    with pair(own_house.raw_port, own_house.target):
        own_house.agent.process.kill()
        assert listens(own_house.dropbear_port), "the listener is the agent's and not its link's"
        own_house.agent.start()
        wait_for_banner(own_house.dropbear_port)


def test_an_agent_that_left_takes_its_port_back(own_house: House) -> None:
    assert own_house.agent.process.terminate() == 0
    own_house.agent.start()
    wait_for_banner(own_house.dropbear_port)


def test_a_visitor_who_comes_meanwhile_is_let_in_when_the_agent_is_back(own_house: House) -> None:
    own_house.agent.process.kill()
    with visit(own_house.raw_port) as visitor:
        visitor.sendall(b"early")
        own_house.agent.start()
        with own_house.target.accept() as accepted:
            assert receive(accepted, 5) == b"early"


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_relay_restart_is_healed(own_house: House, ending: signal.Signals) -> None:
    own_house.relay.process.terminate(ending)
    own_house.relay.start()
    wait_for_banner(own_house.dropbear_port)
    assert own_house.agent.process.running


def test_a_relay_that_is_away_for_a_while_is_healed(own_house: House) -> None:
    """The agent has failed to dial several times, and goes on at the pace it slowed down to."""
    agent = own_house.agent.process
    own_house.relay.process.terminate()
    for _ in range(4):
        agent.wait_for_line("dial-failed", after=len(agent.log))
    own_house.relay.start()
    wait_for_banner(own_house.dropbear_port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("who", ["relay", "agent"])
def test_leaving_on_a_signal(own_house: House, number: signal.Signals, who: str) -> None:
    process = (own_house.relay if who == "relay" else own_house.agent).process
    with pair(own_house.raw_port, own_house.target) as (visitor, accepted):
        assert process.terminate(number) == 0, process.describe()
        # The side that left has said so to its own; its peer keeps or resets the other.
        assert was_reset(visitor if who == "relay" else accepted)
    assert "Traceback" not in process.describe()
    assert process.stdout == ""


def test_a_relay_that_leaves_closes_its_ports(own_house: House) -> None:
    own_house.relay.process.terminate()
    assert not listens(own_house.dropbear_port)
    assert not listens(own_house.relay.port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_agent_without_a_relay_leaves_on_a_signal(
    own_house: House, number: signal.Signals
) -> None:
    agent = own_house.agent.process
    own_house.relay.process.kill()
    agent.wait_for_line("dial-failed")
    assert agent.terminate(number) == 0


def test_revoke_cuts_the_link_and_closes_the_ports(own_house: House) -> None:
    relay = own_house.relay
    with pair(own_house.raw_port, own_house.target) as (visitor, accepted):
        done = relay.cli("revoke", "home")
        assert done.returncode == 0, done.stderr
        assert was_reset(visitor)
        assert was_reset(accepted)
    for port in (own_house.dropbear_port, own_house.openssh_port, own_house.raw_port):
        wait_until_closed(port)
    own_house.agent.process.wait_for_line("link-denied.*revoked")
    assert own_house.agent.process.running
    assert "home" not in relay.agents()
    # Its ports may be given away, and its return changes nothing.
    own_house.agent.process.kill()
    own_house.agent.start().wait_for_line("link-denied.*revoked")
    assert not listens(own_house.dropbear_port)
    relay.invite("other", own_house.dropbear_port)


def test_revoke_while_the_relay_is_down(own_house: House) -> None:
    own_house.relay.process.terminate()
    assert own_house.relay.cli("revoke", "home").returncode == 0
    own_house.relay.start()
    own_house.agent.process.wait_for_line("link-denied.*revoked")
    assert not listens(own_house.dropbear_port)


def test_two_agents_side_by_side(
    new_relay: Callable[..., Relay],
    new_agent: Callable[..., Agent],
    dropbear: SshServer,
    openssh: SshServer,
    login: Login,
) -> None:
    relay, home, cabin = new_relay(), new_agent("home"), new_agent("cabin")
    relay.start()
    home_port, cabin_port = free_port(), free_port()
    home.join(relay.invite("home", home_port), f"ssh={LOOPBACK}:{dropbear.port}")
    cabin.join(relay.invite("cabin", cabin_port), f"ssh={LOOPBACK}:{openssh.port}")
    home.start(home_port)
    cabin.start(cabin_port)
    assert login.ssh(home_port, "pwd").stdout == f"{dropbear.home}\n"
    assert login.ssh(cabin_port, "pwd").stdout == f"{openssh.home}\n"
    assert set(relay.agents()) == {"home", "cabin"}
    # What befalls one is nothing to the other.
    with login.session(cabin_port, "echo up; exec cat") as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"up\n"
        home.process.kill()
        assert relay.cli("revoke", "home").returncode == 0
        wait_until_closed(home_port)
        assert session.communicate(b"still here\n", timeout=10)[0] == b"still here\n"


def test_a_copy_of_an_agent_is_refused_while_the_first_is_alive(
    own_house: House, new_agent: Callable[..., Agent]
) -> None:
    copy = new_agent("copy")
    copy.state.symlink_to(own_house.agent.state)
    with pair(own_house.raw_port, own_house.target) as (visitor, accepted):
        # The same state folder: this machine's lock tells.
        status = copy.start().wait()
        assert status in (1, 2)
        assert len(copy.process.log) == 1, copy.process.describe()
        # A true copy, as on another machine: the relay tells.
        copy.state.unlink()
        copy_folder(own_house.agent.state, copy.state)
        copy.start().wait_for_line("link-denied.*(duplicate|another process)")
        own_house.relay.process.wait_for_line("agent-duplicate.*home")
        visitor.sendall(b"undisturbed")
        assert receive(accepted, 11) == b"undisturbed"


def copy_folder(source: Path, destination: Path) -> None:
    destination.mkdir(mode=0o700)
    for file in source.iterdir():
        if file.is_file():
            copied = destination / file.name
            copied.touch(mode=file.stat().st_mode & 0o777)
            copied.write_bytes(file.read_bytes())


def test_visitors_over_ipv6(
    new_relay: Callable[..., Relay],
    new_agent: Callable[..., Agent],
    dropbear: SshServer,
    target: Target,
    login: Login,
) -> None:
    """Public ports open on every address by default: IPv4 and, where the machine has it, IPv6."""
    relay, agent, ssh_port, raw_port = new_relay(bind=None), new_agent(), free_port(), free_port()
    relay.start()
    agent.join(relay.invite("home", ssh_port, raw_port), f"ssh={LOOPBACK}:{dropbear.port}")
    agent.configure(services(("ssh", dropbear.port, ssh_port), ("raw", target.port, raw_port)))
    agent.start(ssh_port, raw_port)
    assert login.ssh(ssh_port, "exit 4").returncode == 4
    if Path("/proc/net/if_inet6").exists():
        assert login.ssh(ssh_port, "exit 6", host="::1").returncode == 6
        with visit(raw_port, "::1") as visitor, target.accept() as accepted:
            visitor.sendall(b"six")
            assert receive(accepted, 3) == b"six"
