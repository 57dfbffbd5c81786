"""The harness itself, with nothing of the product in between: if these fail, mend them first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.blocking_sockets import Target, reset, visit, was_reset
from tests.support.ports import free_port, listens
from tests.support.processes import ProcessUnderTest, plain_environment
from tests.support.ssh import Login, SshServer, read_banner


@pytest.fixture(params=["dropbear", "openssh"])
def server(request: pytest.FixtureRequest) -> SshServer:
    server = request.getfixturevalue(request.param)
    assert isinstance(server, SshServer)
    return server


def test_login_by_key_lands_in_the_throw_away_home(server: SshServer, login: Login) -> None:
    done = login.ssh(server.port, "pwd; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (f"{server.home}\n", "", 7)


def test_another_host_key_is_refused(server: SshServer, login: Login) -> None:
    nobody = "-oUserKnownHostsFile=none"
    # ssh takes the first value of an option, hence ahead of the login's own.
    argv = login.argv(server.port, "true")
    argv.insert(1, nobody)
    with ProcessUnderTest(argv, environment=login.environment) as ssh:
        assert ssh.wait() == 255
        assert "Host key verification failed" in ssh.describe()


def test_banner(server: SshServer) -> None:
    assert read_banner(server.port).startswith(b"SSH-2.0-")
    assert read_banner(free_port()) == b""


def test_free_ports_differ_and_are_free() -> None:
    ports = [free_port() for _ in range(20)]
    assert len(set(ports)) == len(ports)
    assert not any(map(listens, ports))


def test_a_listening_port_is_seen_without_a_visit(target: Target) -> None:
    assert listens(target.port)
    target.close()
    assert not listens(target.port)


def test_a_reset_is_told_from_an_end(target: Target) -> None:
    with visit(target.port) as visitor:
        reset(target.accept())
        assert was_reset(visitor)
    with visit(target.port) as visitor:
        target.accept().close()
        assert not was_reset(visitor)


def python(code: str, tmp_path: Path) -> ProcessUnderTest:
    return ProcessUnderTest([sys.executable, "-c", code], environment=plain_environment(tmp_path))


def test_a_line_is_waited_for_and_found_later(tmp_path: Path) -> None:
    code = "import sys\nfor i in range(3): print('line', i, file=sys.stderr, flush=True)\ninput()"
    with python(code, tmp_path) as process:
        assert process.wait_for_line(r"line (\d)")[1] == "0"
        assert process.wait_for_line(r"line (\d)", after=1)[1] == "1"
        assert process.wait() == 1  # input() met the end of /dev/null


def test_waiting_for_a_line_ends_with_the_process(tmp_path: Path) -> None:
    with (
        python("print('bye')", tmp_path) as process,
        pytest.raises(AssertionError, match="no line matches 'hello'"),
    ):
        process.wait_for_line("hello")


def test_a_process_ends_by_the_signal_it_gets(tmp_path: Path) -> None:
    with python("import signal; signal.pause()", tmp_path) as process:
        assert process.running
        assert process.terminate() == -15
        assert not process.running
