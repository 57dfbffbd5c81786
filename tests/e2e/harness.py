"""Real processes, and the means to wait for what they do.

Nothing here sleeps for a fixed time: a test waits for an event (a log line, a listening port,
the end of a process, bytes on a socket) and a limit says when to give up. The limits are far
above what the events take, so that a busy machine does not fail a test; where time itself is
the requirement the test says so with a figure of its own.

The SSH servers are real and unprivileged in spirit: libnss_wrapper gives them a passwd file
where the user who runs the tests has a throw-away home, so nobody's ~/.ssh is read or written
and no setting of the server is needed that a router's server would not have.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

from tests.ports import free_port as free_port
from tests.ports import listens as listens

if TYPE_CHECKING:
    from tests.manager import Manager

T = TypeVar("T")

# For an event that is due within a second or so on a quiet machine.
LIMIT = 30.0
# For what moves a lot of data through everything.
LONG_LIMIT = 120.0
# How often a condition is looked at that nothing reports by itself.
GLANCE = 0.02

LOOPBACK = "127.0.0.1"


def eventually(probe: Callable[[], T | None], *, what: str, limit: float = LIMIT) -> T:
    """Return the first true result of `probe`, or fail naming `what` was waited for."""
    deadline = time.monotonic() + limit
    while True:
        result = probe()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {limit:g} s: {what}"
        time.sleep(GLANCE)


# --- Ports ---------------------------------------------------------------------------------------


def wait_until_listening(port: int, *, limit: float = LIMIT) -> None:
    eventually(lambda: listens(port), what=f"port {port} listens", limit=limit)


def wait_until_closed(port: int, *, limit: float = LIMIT) -> None:
    eventually(lambda: not listens(port), what=f"port {port} is closed", limit=limit)


# --- Processes -----------------------------------------------------------------------------------


def script(name: str) -> str:
    """The installed command `name` of the environment the tests run in."""
    path = Path(sys.executable).with_name(name)
    assert path.exists(), f"{path} is not there: install the project into this environment"
    return str(path)


def program(name: str) -> str:
    """A program of the system; sshd and dropbear are not on every user's PATH."""
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    assert path is not None, f"{name} is not installed: run .ci/system-packages test"
    return path


def plain_environment(home: Path) -> dict[str, str]:
    """What a process gets to see: no setting and no home of the user who runs the tests."""
    return {
        "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "LANG": "C.UTF-8",
        # The same cryptography as the tests themselves.
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }


class ProcessUnderTest:
    """A long-running process, its output line by line, and its end.

    It is only ever signalled by its own process id.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        cwd: Path | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        """The process inherits `descriptors` under their numbers here."""
        self.argv = [str(part) for part in argv]
        self.started_at = time.monotonic()
        self._popen = subprocess.Popen(
            self.argv,
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=descriptors,
        )
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._news = threading.Condition()
        self._stdout: list[str] = []
        self._stderr: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True)
            for pipe, lines in (
                (self._popen.stdout, self._stdout),
                (self._popen.stderr, self._stderr),
            )
        ]
        self._open_pipes = len(self._readers)
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: IO[str], lines: list[str]) -> None:
        with pipe:
            for line in pipe:
                with self._news:
                    lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._open_pipes -= 1
            self._news.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    @property
    def stdout(self) -> str:
        with self._news:
            return "".join(f"{line}\n" for line in self._stdout)

    @property
    def log(self) -> list[str]:
        """The lines of stderr so far; `len(process.log)` marks a place for `after`."""
        with self._news:
            return list(self._stderr)

    def wait_for_line(self, pattern: str, *, after: int = 0, limit: float = LIMIT) -> re.Match[str]:
        """The first match of `pattern` in a line of stderr, from line `after` on."""
        return self._wait_for(self._stderr, pattern, after, limit)

    def wait_for_output(self, pattern: str, *, limit: float = LIMIT) -> re.Match[str]:
        """The first match of `pattern` in a line of stdout."""
        return self._wait_for(self._stdout, pattern, 0, limit)

    def _wait_for(self, lines: list[str], pattern: str, seen: int, limit: float) -> re.Match[str]:
        deadline = time.monotonic() + limit
        with self._news:
            while True:
                for line in lines[seen:]:
                    if match := re.search(pattern, line):
                        return match
                seen = max(seen, len(lines))
                rest = deadline - time.monotonic()
                if not self._open_pipes or rest <= 0:
                    break
                self._news.wait(rest)
        raise AssertionError(f"no line matches {pattern!r}\n{self.describe()}")

    def describe(self) -> str:
        state = "running" if self.running else f"ended with status {self._popen.returncode}"
        with self._news:
            lines = [f"$ {' '.join(self.argv)}", f"  ({state})"]
            lines += [f"  out| {line}" for line in self._stdout]
            lines += [f"  err| {line}" for line in self._stderr]
        return "\n".join(lines)

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Kill -9: the kernel alone cleans up behind the process."""
        self._popen.kill()
        self._popen.wait(LIMIT)

    def wait(self, *, limit: float = LIMIT) -> int:
        """The exit status, once the process has ended and its whole output is here."""
        try:
            status = self._popen.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {limit:g} s\n{self.describe()}") from None
        for reader in self._readers:
            # A grandchild may still hold the pipe, as a login session of dropbear does.
            reader.join(1.0)
        return status

    def terminate(self, number: signal.Signals = signal.SIGTERM, *, limit: float = LIMIT) -> int:
        self.send(number)
        return self.wait(limit=limit)

    def stop(self) -> None:
        """End the process however it takes; for cleaning up."""
        if self.running:
            self._popen.terminate()
            try:
                self._popen.wait(5.0)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        self.wait()


def run(
    argv: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    stdin: str | None = None,
    limit: float = LIMIT,
    before_exec: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Its status is the caller's to judge."""
    return subprocess.run(
        [str(part) for part in argv],
        env=dict(environment),
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        check=False,
        timeout=limit,
        preexec_fn=before_exec,
    )


def only_line(text: str) -> str:
    """The one line `text` consists of."""
    assert text.endswith("\n"), f"not a whole line: {text!r}"
    assert text.count("\n") == 1, f"expected one line, got:\n{text}"
    assert text.strip(), "expected one line, got an empty one"
    return text[:-1]


def assert_fails(
    done: subprocess.CompletedProcess[str], *words: str, status: int | None = None
) -> None:
    """A command that could not do it says why in one last line that holds all of `words`."""
    assert done.returncode in ((1, 2) if status is None else (status,)), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    *_, line = done.stderr.splitlines() or [""]
    assert line.startswith(("relay-server", "relay-agent")), done.stderr
    for word in words:
        assert word in line, f"{word!r} is not in: {line}"


# --- SSH -----------------------------------------------------------------------------------------


class Login:
    """Throw-away login key and known hosts, for the user who runs the tests."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.key = folder / "login_key"
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.touch()
        make_key(self.key)
        self.public_key = self.key.with_suffix(".pub").read_text()
        self.environment = plain_environment(folder)

    def trust(self, host_public_key: str) -> None:
        """Accept this host key, whatever the port; any other one is refused by ssh."""
        with self.known_hosts.open("a") as known_hosts:
            known_hosts.write(f"* {host_public_key.strip()}\n")

    @property
    def options(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": f"{LIMIT:.0f}",
            "GlobalKnownHostsFile": "none",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "IdentityFile": str(self.key),
            "LogLevel": "ERROR",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "User": self.user,
        }
        return ["-F", "none", *(f"-o{name}={value}" for name, value in options.items())]

    def argv(
        self, port: int, *command: str, options: Sequence[str] = (), host: str = LOOPBACK
    ) -> list[str]:
        return [program("ssh"), *self.options, *options, "-p", str(port), host, *command]

    def ssh(
        self, port: int, *command: str, options: Sequence[str] = (), host: str = LOOPBACK
    ) -> subprocess.CompletedProcess[str]:
        return run(
            self.argv(port, *command, options=options, host=host),
            environment=self.environment,
            limit=LONG_LIMIT,
        )

    @contextlib.contextmanager
    def session(
        self, port: int, *command: str, options: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[bytes]]:
        """An ssh to talk to, that does not outlive the `with`."""
        with subprocess.Popen(
            self.argv(port, *command, options=options),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield process
            finally:
                process.kill()  # nothing happens if it has ended


def make_key(path: Path) -> None:
    subprocess.run(
        [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "throw-away", "-f", path],
        check=True,
        stdin=subprocess.DEVNULL,
    )


class SshServer:
    """A real SSH server on a free port of the loopback address."""

    def __init__(self, folder: Path, login: Login) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.login = login
        self.port = free_port()
        self.home = folder / "home"
        self._make_home()
        self.process = ProcessUnderTest(
            self._prepare(), environment=self._wrapped_environment(), cwd=folder
        )
        wait_until_listening(self.port)

    def _prepare(self) -> list[str]:
        """Write what the server needs and return its command."""
        raise NotImplementedError

    def stop(self) -> None:
        self.process.stop()

    def _make_home(self) -> None:
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        self.home.chmod(0o700)
        authorized_keys = ssh / "authorized_keys"
        authorized_keys.write_text(self.login.public_key)
        authorized_keys.chmod(0o600)

    def _wrapped_environment(self) -> dict[str, str]:
        user = self.login.user
        mine = f"{user}:*:{os.getuid()}:{os.getgid()}::{self.home}:/bin/sh"
        others = [
            line
            for line in Path("/etc/passwd").read_text().splitlines()
            if not line.startswith(f"{user}:")
        ]
        passwd = self.folder / "passwd"
        passwd.write_text("\n".join([mine, *others, ""]))
        # "*" and not "!": with a locked account sshd refuses keys too.
        shadow = self.folder / "shadow"
        shadow.write_text(f"{user}:*:19000:0:99999:7:::\n")
        # Without the group "tty", to which only root may give a terminal where /dev/pts is mounted
        # without it, as containers do.
        group = self.folder / "group"
        groups = Path("/etc/group").read_text().splitlines(keepends=True)
        group.write_text("".join(line for line in groups if not line.startswith("tty:")))
        return plain_environment(self.home) | {
            "LD_PRELOAD": "libnss_wrapper.so",
            "NSS_WRAPPER_PASSWD": str(passwd),
            "NSS_WRAPPER_SHADOW": str(shadow),
            "NSS_WRAPPER_GROUP": str(group),
        }


class Dropbear(SshServer):
    """What most routers run, with the options they run it with."""

    def _prepare(self) -> list[str]:
        host_key = self.folder / "host_key"
        made = subprocess.run(
            [program("dropbearkey"), "-t", "ed25519", "-f", host_key],
            check=True,
            capture_output=True,
            text=True,
        )
        self.login.trust(next(x for x in made.stdout.splitlines() if x.startswith("ssh-ed25519")))
        dropbear = [program("dropbear"), "-F", "-E", "-s", "-r", str(host_key)]
        return [*dropbear, "-p", f"{LOOPBACK}:{self.port}", "-P", str(self.folder / "pid")]


class OpenSsh(SshServer):
    def _prepare(self) -> list[str]:
        if os.getuid() == 0:
            # sshd run by root insists on this empty folder, which its service makes at boot.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        host_key = self.folder / "host_key"
        make_key(host_key)
        self.login.trust(host_key.with_suffix(".pub").read_text())
        config = self.folder / "sshd_config"
        config.write_text(
            f"ListenAddress {LOOPBACK}\n"
            f"Port {self.port}\n"
            f"HostKey {host_key}\n"
            "PidFile none\n"
            "PasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\n"
            "UsePAM no\n"
            # The folder of the tests may lie below one that others can write to, as /tmp is.
            "StrictModes no\n"
            "AllowTcpForwarding yes\n"
            "Subsystem sftp internal-sftp\n"
            # No visitor of a test is to be turned away at random.
            "MaxStartups 100\n"
        )
        return [program("sshd"), "-D", "-e", "-f", str(config)]


# --- Relay and agent -----------------------------------------------------------------------------


class Relay:
    """relay-server with a state folder, a port and a life of its own."""

    def __init__(self, folder: Path, *, bind: str | None = LOOPBACK, config: str = "") -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.state = folder / "state"
        self.port = free_port()
        self.bind = bind
        self.config = folder / "relay.toml"
        self.config.write_text(config)
        self.environment = plain_environment(folder)
        self.manager: Manager | None = None  # that the relay is a service of
        self.command = [script("relay-server")]
        self._process: ProcessUnderTest | None = None

    @property
    def process(self) -> ProcessUnderTest:
        assert self._process is not None, "the relay was not started"
        return self._process

    def start(self, *, limit: float = LIMIT) -> ProcessUnderTest:
        argv = [*self.command, "run", "--state-dir", str(self.state)]
        argv += ["--config", str(self.config), "--listen", f"{LOOPBACK}:{self.port}"]
        argv += ["--host", f"{LOOPBACK}:{self.port}"]
        if self.bind is not None:
            argv += ["--bind", self.bind]
        environment, descriptors = self.environment, list[int]()
        if self.manager is not None:
            argv = self.manager.launch(argv)
            environment = environment | {"NOTIFY_SOCKET": self.manager.address}
            descriptors = [descriptor for _, descriptor in self.manager.store]
        self._process = ProcessUnderTest(argv, environment=environment, descriptors=descriptors)
        process = self._process
        # Its port may listen before: of a process before it, whose socket was kept.
        process.wait_for_line(r"[ \"]listening[ \"]", limit=limit)
        return process

    def cli(
        self, *arguments: str, before_exec: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        argv = [script("relay-server"), *arguments, "--state-dir", str(self.state)]
        return run(argv, environment=self.environment, before_exec=before_exec)

    def invite(self, name: str, *ports: int, hosts: Sequence[str] = ()) -> str:
        arguments = ["invite", name]
        for port in ports:
            arguments += ["--port", str(port)]
        for host in hosts:
            arguments += ["--host", host]
        done = self.cli(*arguments)
        assert done.returncode == 0, done.stderr
        return only_line(done.stdout)

    def agents(self) -> dict[str, dict[str, Any]]:
        """What `agents --json` says, by name."""
        done = self.cli("agents", "--json")
        assert done.returncode == 0, done.stderr
        return {agent["name"]: agent for agent in json.loads(done.stdout)}

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()


class Agent:
    """relay-agent with a state folder and a life of its own.

    `command` is what to start it with, if not as it is installed here.
    """

    def __init__(self, folder: Path, command: Sequence[str] = ()) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.command = list(command) or [script("relay-agent")]
        self.state = folder / "state"
        self.environment = plain_environment(folder)
        self._process: ProcessUnderTest | None = None

    @property
    def process(self) -> ProcessUnderTest:
        assert self._process is not None, "the agent was not started"
        return self._process

    def try_join(
        self, invitation: str, *services: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        argv = [*self.command, "join"]
        argv += [invitation] if stdin is None else []
        for service in services:
            argv += ["--service", service]
        argv += ["--state-dir", str(self.state)]
        return run(argv, environment=self.environment, stdin=stdin, limit=LONG_LIMIT)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [script("relay-agent"), *arguments, "--state-dir", str(self.state)]
        return run(argv, environment=self.environment, limit=LONG_LIMIT)

    def join(self, invitation: str, *services: str) -> None:
        done = self.try_join(invitation, *services)
        assert done.returncode == 0, f"join failed:\n{done.stdout}{done.stderr}"

    def configure(self, toml: str) -> None:
        """Write the user's own options, which `run` reads from the state folder."""
        self.state.mkdir(mode=0o700, exist_ok=True)
        (self.state / "agent.toml").write_text(toml)

    def start(self, *ports: int) -> ProcessUnderTest:
        """Run the agent, and wait until the services at all of `ports` are up."""
        # At debug level also failures that repeat are told, which tests count.
        argv = [*self.command, "run", "--state-dir", str(self.state)]
        argv += ["--log-level", "debug"]
        self._process = ProcessUnderTest(argv, environment=self.environment)
        # A port may listen before, for it belongs to the agent and not to this process.
        for port in ports:
            self._process.wait_for_line(rf" service-up .*\bport={port}\b")
        return self._process

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()


def services(*entries: tuple[str, int, int]) -> str:
    """What agent.toml says for services of a name, a local port and a public one."""
    return "".join(
        f'[services.{name}]\ntarget = "{LOOPBACK}:{local}"\nport = {public}\n'
        for name, local, public in entries
    )


# --- Sockets of the test's own -------------------------------------------------------------------

# Enough to fill every buffer on the way, and for the receiver to notice one byte amiss.
PATTERN = b"".join(struct.pack(">I", number) for number in range(1 << 18))


class Target:
    """A listening socket that a service points to; the test plays the server itself."""

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0), backlog=64)
        self._listener.settimeout(LIMIT)
        self.port: int = self._listener.getsockname()[1]

    def accept(self) -> socket.socket:
        accepted, _ = self._listener.accept()
        accepted.settimeout(LIMIT)
        return accepted

    def close(self) -> None:
        self._listener.close()


def visit(port: int, host: str = LOOPBACK, *, source: str | None = None) -> socket.socket:
    """Come to a public port like anybody's TCP client, from the address `source`."""
    bind = None if source is None else (source, 0)
    return socket.create_connection((host, port), timeout=LIMIT, source_address=bind)


@contextlib.contextmanager
def pair(port: int, target: Target) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A visitor and the socket at the target that belongs to it, proved by a first exchange."""
    with visit(port) as visitor:
        visitor.sendall(b"hello?")
        with target.accept() as accepted:
            assert receive(accepted, 6) == b"hello?"
            accepted.sendall(b"hello!")
            assert receive(visitor, 6) == b"hello!"
            yield visitor, accepted


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(size - len(data), 1 << 16))
        assert piece, f"ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


@contextlib.contextmanager
def sending(sock: socket.socket, data: bytes) -> Iterator[None]:
    """Send `data` and the end of that direction, while the body of the `with` goes on."""

    def send() -> None:
        # When the reader gives up, its own complaint is the one worth reading.
        with contextlib.suppress(OSError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    yield
    sender.join(LIMIT)
    assert not sender.is_alive(), "still sending"


def receive_to_end(sock: socket.socket) -> bytes:
    """All bytes up to a clean end; a reset raises ConnectionResetError."""
    data = bytearray()
    while piece := sock.recv(1 << 16):
        data += piece
    return bytes(data)


def was_reset(sock: socket.socket) -> bool:
    """Read on until the end, and tell whether it was a reset."""
    try:
        receive_to_end(sock)
    except ConnectionResetError:
        return True
    return False


def reset(sock: socket.socket) -> None:
    """Close with a RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_banner(port: int, host: str = LOOPBACK) -> bytes:
    """What an SSH server says first, or b"" when the port refuses, resets or just ends."""
    try:
        with visit(port, host) as visitor:
            line = b""
            while not line.endswith(b"\n") and (byte := visitor.recv(1)):
                line += byte
            return line
    except ConnectionError:
        return b""
