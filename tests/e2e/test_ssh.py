"""OpenSSH's client and what is built on it, through the relay, end as they do directly."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shlex
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocking_sockets import PATTERN, Target, pair, receive, visit
from tests.support.house import Door, House
from tests.support.ports import LOOPBACK, free_port, wait_until_listening
from tests.support.processes import ProcessUnderTest, plain_environment, program, run
from tests.support.ssh import Login
from tests.support.waiting import LIMIT, LONG_LIMIT, eventually

MIB = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class BigFile:
    path: Path
    size: int
    digest: str


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BigFile]:
    path, size, digest = tmp_path_factory.mktemp("big") / "file", 200 * MIB, hashlib.sha256()
    with path.open("wb") as out:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            digest.update(block)
            out.write(block)
    yield BigFile(path, size, digest.hexdigest())
    path.unlink()


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_login_by_key_and_exit_status(door: Door, login: Login, status: int) -> None:
    done = login.ssh(door.port, f"pwd; echo beside >&2; exit {status}")
    assert done.stdout == f"{door.server.home}\n"
    assert done.stderr == "beside\n"
    assert done.returncode == status


def test_a_terminal(door: Door, login: Login) -> None:
    done = login.ssh(door.port, "tty && stty size && exit 5", options=["-tt"])
    assert done.stdout.startswith("/dev/pts/"), done.stdout
    assert done.returncode == 5


def test_a_wrong_key_is_refused_by_the_server_and_not_by_us(
    door: Door, login: Login, tmp_path: Path
) -> None:
    stranger = Login(tmp_path / "stranger")
    argv = stranger.argv(door.port, "true")
    argv.insert(1, f"-oUserKnownHostsFile={login.known_hosts}")
    done = run(argv, environment=stranger.environment)
    assert done.returncode == 255
    assert "Permission denied (publickey" in done.stderr


def test_200_mb_to_the_router(door: Door, login: Login, big_file: BigFile) -> None:
    with big_file.path.open("rb") as source:
        done = subprocess.run(
            login.argv(door.port, "sha256sum"),
            env=login.environment,
            stdin=source,
            capture_output=True,
            text=True,
            check=False,
            timeout=LONG_LIMIT,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] == big_file.digest


def test_200_mb_from_the_router(door: Door, login: Login, big_file: BigFile) -> None:
    digest, size = hashlib.sha256(), 0
    with login.session(door.port, f"cat {big_file.path}") as ssh:
        assert ssh.stdout is not None
        while piece := ssh.stdout.read(MIB):
            digest.update(piece)
            size += len(piece)
        assert ssh.wait(LIMIT) == 0
    assert (size, digest.hexdigest()) == (big_file.size, big_file.digest)


def test_a_slow_reader_gets_all_bytes_and_the_status(
    door: Door, login: Login, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(PATTERN * 4)
    received = bytearray()
    with login.session(door.port, f"cat {file}; exit 3") as ssh:
        assert ssh.stdout is not None
        while piece := ssh.stdout.read(16 << 10):
            received += piece
            time.sleep(0.004)  # slowness is what is tested: some 4 MB/s
        assert ssh.wait(LIMIT) == 3
    assert received == file.read_bytes()


def test_a_reader_that_stands_still_gets_all_bytes_and_the_status(
    door: Door, login: Login, tmp_path: Path
) -> None:
    """The command and its status are over before the visitor reads the first of its bytes."""
    file, go, over = tmp_path / "file", tmp_path / "go", tmp_path / "over"
    file.write_bytes(PATTERN[: 256 << 10])  # what ssh's window and the buffers on the way hold
    wait_for_go = f"until [ -e {go} ]; do sleep 0.02; done"
    command = f"echo ready; {wait_for_go}; cat {file}; touch {over}; exit 3"
    with login.session(door.port, command) as ssh:
        assert ssh.stdout is not None
        assert ssh.stdout.readline() == b"ready\n"
        ssh.send_signal(signal.SIGSTOP)
        go.touch()
        eventually(over.exists, what="the command is over")
        ssh.send_signal(signal.SIGCONT)
        received = ssh.stdout.read()
        assert ssh.wait(LIMIT) == 3
    assert received == file.read_bytes()


@pytest.mark.parametrize("protocol", ["sftp", "scp"])
def test_scp_both_ways(door: Door, login: Login, tmp_path: Path, protocol: str) -> None:
    here, there, back = tmp_path / "here", tmp_path / "there", tmp_path / "back"
    here.write_bytes(PATTERN * 8)
    scp: list[str | Path] = [program("scp"), *login.options, "-q", "-P", str(door.port)]
    if protocol == "scp":
        scp.append("-O")  # what a router without an SFTP server needs
    for source, destination in ((here, f"{LOOPBACK}:{there}"), (f"{LOOPBACK}:{there}", back)):
        done = run([*scp, source, destination], environment=login.environment, limit=LONG_LIMIT)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert back.read_bytes() == there.read_bytes() == here.read_bytes()


def test_scp_of_what_is_not_there_fails(door: Door, login: Login, tmp_path: Path) -> None:
    scp = [program("scp"), *login.options, "-q", "-P", str(door.port)]
    done = run(
        [*scp, f"{LOOPBACK}:{tmp_path}/nothing", tmp_path / "here"], environment=login.environment
    )
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr


def test_rsync_both_ways(door: Door, login: Login, tmp_path: Path) -> None:
    here, there, back = tmp_path / "here", tmp_path / "there", tmp_path / "back"
    (here / "folder").mkdir(parents=True)
    for number in range(100):
        (here / "folder" / f"{number}").write_bytes(PATTERN[: number * 1000])
    (here / "big").write_bytes(PATTERN * 8)
    shell = shlex.join([program("ssh"), *login.options, "-p", str(door.port)])
    rsync = [program("rsync"), "--archive", "--rsh", shell]

    def sync(source: str, destination: str) -> str:
        done = run([*rsync, source, destination], environment=login.environment, limit=LONG_LIMIT)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    sync(f"{here}/", f"{LOOPBACK}:{there}")
    (here / "big").write_bytes(PATTERN * 4 + b"changed" + PATTERN * 4)
    sync(f"{here}/", f"{LOOPBACK}:{there}")
    sync(f"{LOOPBACK}:{there}/", f"{back}")
    assert contents(back) == contents(there) == contents(here)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_git_push_and_clone(door: Door, login: Login, tmp_path: Path) -> None:
    work, bare, clone = tmp_path / "work", tmp_path / "bare", tmp_path / "clone"
    environment = plain_environment(tmp_path) | {
        "GIT_SSH_COMMAND": shlex.join([program("ssh"), *login.options]),
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_NAME": "Nobody" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "nobody@example.net" for who in ("AUTHOR", "COMMITTER")},
    }

    def git(*arguments: str | Path) -> str:
        done = run([program("git"), *arguments], environment=environment, limit=LONG_LIMIT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    url = f"ssh://{login.user}@{LOOPBACK}:{door.port}{bare}"
    git("init", "--quiet", "--initial-branch=main", work)
    git("init", "--quiet", "--bare", "--initial-branch=main", bare)
    (work / "file").write_bytes(os.urandom(4 * MIB))
    git("-C", work, "add", "file")
    git("-C", work, "commit", "--quiet", "--message", "A file")
    git("-C", work, "push", "--quiet", url, "main")
    git("clone", "--quiet", url, clone)
    assert (clone / "file").read_bytes() == (work / "file").read_bytes()
    assert git("-C", clone, "rev-parse", "HEAD") == git("-C", work, "rev-parse", "HEAD")


def test_local_forwarding_inside(door: Door, login: Login, target: Target) -> None:
    port = free_port()
    forward = f"-L{LOOPBACK}:{port}:{LOOPBACK}:{target.port}"
    with forwarding(login, door, forward, port), pair(port, target) as (visitor, accepted):
        visitor.sendall(PATTERN[:100_000])
        assert receive(accepted, 100_000) == PATTERN[:100_000]
        accepted.sendall(PATTERN[:100_000])
        assert receive(visitor, 100_000) == PATTERN[:100_000]


def test_dynamic_forwarding_inside(door: Door, login: Login, target: Target) -> None:
    port = free_port()
    with forwarding(login, door, f"-D{LOOPBACK}:{port}", port), visit(port) as visitor:
        # SOCKS 5 (RFC 1928): no authentication, then CONNECT to an IPv4 address.
        visitor.sendall(b"\x05\x01\x00")
        assert receive(visitor, 2) == b"\x05\x00"
        address = socket.inet_aton(LOOPBACK) + struct.pack(">H", target.port)
        visitor.sendall(b"\x05\x01\x00\x01" + address)
        assert receive(visitor, 10)[:2] == b"\x05\x00"
        with target.accept() as accepted:
            visitor.sendall(b"out")
            assert receive(accepted, 3) == b"out"
            accepted.sendall(b"back")
            assert receive(visitor, 4) == b"back"


@contextlib.contextmanager
def forwarding(login: Login, door: Door, option: str, port: int) -> Iterator[None]:
    options = ["-N", "-oExitOnForwardFailure=yes", option]
    argv = login.argv(door.port, options=options)
    with ProcessUnderTest(argv, environment=login.environment):
        wait_until_listening(port)
        yield


def test_ten_sessions_at_once(door: Door, login: Login) -> None:
    """All are open together; they log in one after the other, as dropbear lets five at a time."""
    with contextlib.ExitStack() as stack:
        sessions = []
        for _ in range(10):
            session = stack.enter_context(login.session(door.port, "echo up; exec cat"))
            assert session.stdout is not None
            assert session.stdout.readline() == b"up\n"
            sessions.append(session)
        for number, session in reversed(list(enumerate(sessions))):
            assert session.stdin is not None
            assert session.stdout is not None
            session.stdin.write(b"session %d\n" % number)
            session.stdin.flush()
            assert session.stdout.readline() == b"session %d\n" % number
        for session in sessions:
            assert session.communicate(timeout=LIMIT) == (b"", b"")
            assert session.returncode == 0


def test_ten_logins_at_once_from_ten_addresses(door: Door, login: Login) -> None:
    """The SSH server tells visitors apart, so its limit for each address hits none of them."""
    results: dict[int, str] = {}

    def log_in(number: int) -> None:
        done = login.ssh(door.port, f"echo {number}", options=["-b", f"127.0.0.{number}"])
        results[number] = done.stdout + done.stderr + f"status {done.returncode}"

    threads = [threading.Thread(target=log_in, args=(number,)) for number in range(2, 12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_LIMIT)
    assert results == {number: f"{number}\nstatus 0" for number in range(2, 12)}


def test_typing_goes_on_beside_bulk(house: House, login: Login, big_file: BigFile) -> None:
    with (
        login.session(house.dropbear_port, "echo up; exec cat") as typing,
        login.session(house.openssh_port, f"cat {big_file.path}") as bulk,
    ):
        assert typing.stdin is not None
        assert typing.stdout is not None
        assert bulk.stdout is not None
        assert typing.stdout.readline() == b"up\n"
        # Read a little, so that the bulk is on its way, then stand still: it fills every buffer.
        assert len(bulk.stdout.read(MIB)) == MIB
        for number in range(20):
            typing.stdin.write(b"%d\n" % number)
            typing.stdin.flush()
            assert typing.stdout.readline() == b"%d\n" % number
        bulk.kill()
        assert typing.communicate(timeout=LIMIT) == (b"", b"")
        assert typing.returncode == 0
