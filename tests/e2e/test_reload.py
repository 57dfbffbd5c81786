"""Configurations that change under a running login and other streams."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

from tests.support.blocking_sockets import pair, receive, visit
from tests.support.house import House
from tests.support.ports import LOOPBACK, free_port, listens
from tests.support.processes import ProcessUnderTest
from tests.support.programs import Relay, services
from tests.support.ssh import Login, SshServer
from tests.support.waiting import LIMIT, eventually

DENIED = "127.0.5.5"


def test_the_relays_rules_change_and_a_login_goes_on(own_house: House, login: Login) -> None:
    relay = own_house.relay
    with login.session(own_house.dropbear_port, "echo up; exec cat") as session:
        assert session.stdin is not None
        assert session.stdout is not None
        assert session.stdout.readline() == b"up\n"
        relay.config.write_text(f'[guard.raw]\ndeny = ["{DENIED}"]\n')
        done = relay.cli("reload")
        assert (done.stdout, done.stderr) == ("changed: guard\n", "")
        assert is_refused(own_house.raw_port, source=DENIED)
        with pair(own_house.raw_port, own_house.target):
            pass
        relay.config.write_text('deny = ["nonsense"]\n[guard.raw]\n')
        done = relay.cli("reload")
        assert done.returncode == 1
        assert done.stderr.startswith(
            f"relay-server: the running process refuses: {relay.config}: deny: expected an address"
        )
        assert is_refused(own_house.raw_port, source=DENIED), "what was in effect still is"
        relay.config.write_text('[guard.raw]\nhold = 0\nunknown = "key"\n')
        relay.process.send(signal.SIGHUP)
        relay.process.wait_for_line(r"reload-refused .*guard\.raw\.unknown: unknown key")
        relay.config.write_text('log_format = "json"\n')
        relay.process.send(signal.SIGHUP)
        told = relay.process.wait_for_line(r'\{.*"event": "reloaded".*\}')
        changed = json.loads(told[0])
        assert (changed["changed"], changed["needs_restart"]) == (["log_format", "guard"], [])
        with visit(own_house.raw_port, source=DENIED) as visitor:
            visitor.sendall(b"hello")
            with own_house.target.accept() as accepted:
                assert receive(accepted, 5) == b"hello"
        session.stdin.write(b"still here\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"still here\n"
        assert session.communicate(timeout=LIMIT) == (b"", b"")
        assert session.returncode == 0


def test_what_needs_a_restart_is_named(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay(bind=None)
    relay.start()
    assert relay.cli("reload").stdout == "nothing has changed\n"
    port = free_port()
    relay.config.write_text(f'bind = "127.0.0.2"\nports = "{port}-{port}"\n')
    done = relay.cli("reload")
    assert (done.stdout, done.stderr) == ("changed: ports\n", "not before a restart: bind\n")
    assert f"port {port}." in relay.cli("invite", "late").stderr


def is_refused(port: int, *, source: str) -> bool:
    try:
        with visit(port, source=source) as visitor:
            return not visitor.recv(1)
    except ConnectionResetError:  # it may come before connect(2) has returned
        return True


def test_the_agents_services_change_and_streams_go_on(
    own_house: House, dropbear: SshServer, openssh: SshServer, login: Login
) -> None:
    """`raw` goes, `openssh` takes its port, and `ssh` gets another target."""
    house, agent = own_house, own_house.agent
    with (
        login.session(house.dropbear_port, "echo up; exec cat") as session,
        pair(house.raw_port, house.target) as (visitor, accepted),
    ):
        assert session.stdin is not None
        assert session.stdout is not None
        assert session.stdout.readline() == b"up\n"
        agent.configure(
            services(
                ("ssh", openssh.port, house.dropbear_port),
                ("openssh", dropbear.port, house.raw_port),
            )
        )
        done = agent.cli("reload")
        assert (done.stdout, done.stderr) == (
            "services removed: raw\nservices changed: ssh, openssh\n",
            "",
        )
        agent.process.wait_for_line(rf"service-up service=openssh port={house.raw_port}")
        assert banner(house.raw_port).startswith(b"SSH-2.0-dropbear")
        assert banner(house.dropbear_port).startswith(b"SSH-2.0-OpenSSH")
        eventually(lambda: not listens(house.openssh_port), what="the port is closed")
        agent.configure("[services.ssh]\n")
        done = agent.cli("reload")
        assert done.returncode == 1
        assert "agent.toml: services.ssh.target: missing; expected HOST:PORT" in done.stderr
        mark = len(agent.process.log)
        agent.process.send(signal.SIGHUP)
        agent.process.wait_for_line(r"reload-refused .*services\.ssh\.target", after=mark)
        for this, that in ((visitor, accepted), (accepted, visitor)):
            this.sendall(b"still here")
            assert receive(that, 10) == b"still here"
        session.stdin.write(b"still here\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"still here\n"
        assert session.communicate(timeout=LIMIT) == (b"", b"")
        assert session.returncode == 0


def test_a_file_of_arguments_is_read_again(own_house: House, dropbear: SshServer) -> None:
    """As OpenWrt's init script writes it from UCI."""
    house, agent = own_house, own_house.agent
    agent.stop()
    arguments = agent.folder / "arguments"
    arguments.write_text(f"--service\nssh={LOOPBACK}:{dropbear.port}@{house.dropbear_port}\n")
    argv = [*agent.command, "run", "--state-dir", str(agent.state), f"@{arguments}"]
    agent._process = ProcessUnderTest(argv, environment=agent.environment)
    agent.process.wait_for_line(rf"service-up service=ssh port={house.dropbear_port}")
    arguments.write_text(f"--service\nssh={LOOPBACK}:{dropbear.port}@{house.raw_port}\n")
    agent.process.send(signal.SIGHUP)
    agent.process.wait_for_line(rf"service-up service=ssh port={house.raw_port}")
    arguments.write_text("--log-level\nloud\n")
    agent.process.send(signal.SIGHUP)
    agent.process.wait_for_line(r"reload-refused .*--log-level: invalid choice: 'loud'")
    arguments.unlink()
    mark = len(agent.process.log)
    agent.process.send(signal.SIGHUP)
    agent.process.wait_for_line(r"reload-refused .*No such file or directory", after=mark)
    assert banner(house.raw_port).startswith(b"SSH-2.0-dropbear")


def banner(port: int) -> bytes:
    with visit(port) as visitor:
        return receive(visitor, 16)
