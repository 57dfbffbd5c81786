"""What carries a visitor's bytes to a target: ours, and each peer that is installed.

A carrier opens one public port on this machine for each target port. On its way are two sides:
the relay's, where visitors come in, and the agent's, which dials out and reaches the targets. All
of it runs in a folder of its own with keys made for the occasion.
"""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol import __version__
from tests.support import programs, ssh
from tests.support.ports import LOOPBACK, free_port, wait_until_listening
from tests.support.processes import ProcessUnderTest, plain_environment, program, script
from tests.support.waiting import eventually

AES_GCM: Final = "aes128-gcm@openssh.com"


class Carrier(abc.ABC):
    """Once started, `ports` are the public ports, in the order of the targets."""

    name: str
    ports: list[int]

    def missing(self) -> str | None:
        """Why this carrier cannot run here; None if it can."""
        return None

    @abc.abstractmethod
    def start(self, folder: Path, targets: Sequence[int]) -> None:
        """Make `folder`, and return when all public ports listen."""

    @abc.abstractmethod
    def stop(self) -> None: ...

    @abc.abstractmethod
    def relay_pids(self) -> list[int]:
        """The processes at the public ports' side, children included."""

    @abc.abstractmethod
    def agent_pids(self) -> list[int]:
        """The processes at the targets' side, children included."""

    def pids(self) -> list[int]:
        return [*self.relay_pids(), *self.agent_pids()]

    @property
    @abc.abstractmethod
    def version(self) -> str: ...

    @contextlib.contextmanager
    def running(self, folder: Path, targets: Sequence[int]) -> Iterator[None]:
        try:
            self.start(folder, targets)
            yield
        finally:
            self.stop()


class Direct(Carrier):
    """No carrier at all: what the path, the load generator and the far end allow."""

    name = "direct"

    def start(self, folder: Path, targets: Sequence[int]) -> None:
        del folder
        self.ports = list(targets)

    def stop(self) -> None:
        pass

    def relay_pids(self) -> list[int]:
        return []

    def agent_pids(self) -> list[int]:
        return []

    @property
    def version(self) -> str:
        return ""


# --- Ours ----------------------------------------------------------------------------------------


class _Agent(programs.Agent):
    """With the log level that users run it with."""

    def start(self, *ports: int) -> ProcessUnderTest:
        argv = [script("relay-agent"), "run", "--state-dir", str(self.state)]
        self._process = ProcessUnderTest(argv, environment=self.environment)
        for port in ports:
            wait_until_listening(port)
        return self._process


class Relay(Carrier):
    """relay-server and relay-agent, with lines of their configuration files if any."""

    name = "ssh-relay"

    def __init__(self, *, relay_options: str = "", agent_options: str = "") -> None:
        self._relay_options = relay_options
        self._agent_options = agent_options
        self.relay: programs.Relay | None = None
        self.agent: _Agent | None = None

    def start(self, folder: Path, targets: Sequence[int]) -> None:
        folder.mkdir(mode=0o700)
        self.ports = [free_port() for _ in targets]
        self.relay = programs.Relay(folder / "relay", config=self._relay_options)
        self.agent = _Agent(folder / "agent")
        self.relay.start()
        with _banner() as port:
            # Joining waits for a service to speak first, and targets here do not.
            invitation = self.relay.invite("bench", *self.ports)
            self.agent.join(invitation, f"ssh={LOOPBACK}:{port}@{self.ports[0]}")
        entries = [
            (f"s{number}", target, port)
            for number, (target, port) in enumerate(zip(targets, self.ports, strict=True))
        ]
        self.agent.configure(self._agent_options + programs.services(*entries))
        process = self.agent.start(*self.ports)
        # The ports have been open since the agent joined; only so many visitors wait for it there.
        eventually(
            lambda: sum(" service-up " in line for line in process.log) == len(self.ports),
            what="the agent serves every port",
        )

    def stop(self) -> None:
        for side in (self.agent, self.relay):
            if side is not None:
                side.stop()

    def relay_pids(self) -> list[int]:
        assert self.relay is not None
        return tree(self.relay.process.pid)

    def agent_pids(self) -> list[int]:
        assert self.agent is not None
        return tree(self.agent.process.pid)

    @property
    def version(self) -> str:
        return f"ssh-relay {__version__}"


@contextlib.contextmanager
def _banner() -> Iterator[int]:
    """The port of something that says what an SSH server says first."""
    with socket.create_server((LOOPBACK, 0)) as listener:

        def greet() -> None:
            with contextlib.suppress(OSError):  # closed, when it is not needed any more
                while True:
                    visitor, _ = listener.accept()
                    with visitor:
                        visitor.sendall(b"SSH-2.0-bench\r\n")

        threading.Thread(target=greet, daemon=True).start()
        yield listener.getsockname()[1]
        # Closing alone does not wake who is in accept.
        listener.shutdown(socket.SHUT_RDWR)


# --- Peers ---------------------------------------------------------------------------------------


class Ssh(Carrier):
    """`ssh -R` to an sshd, both as they come but for the cipher."""

    def __init__(self, cipher: str | None = None) -> None:
        self.cipher = cipher
        self.name = f"ssh -R {cipher.partition('@')[0]}" if cipher else "ssh -R"
        self._sshd: ssh.OpenSsh | None = None
        self._ssh: ProcessUnderTest | None = None

    def missing(self) -> str | None:
        return _missing("ssh", "sshd", "ssh-keygen")

    def start(self, folder: Path, targets: Sequence[int]) -> None:
        folder.mkdir(mode=0o700)
        self.ports = [free_port() for _ in targets]
        login = ssh.Login(folder / "login")
        self._sshd = ssh.OpenSsh(folder / "sshd", login)
        options = ["-N", "-T", "-oExitOnForwardFailure=yes"]
        options += [f"-oCiphers={self.cipher}"] if self.cipher else []
        for port, target in zip(self.ports, targets, strict=True):
            options += ["-R", f"{LOOPBACK}:{port}:{LOOPBACK}:{target}"]
        argv = [*self._command(), *login.argv(self._sshd.port, options=options)[1:]]
        self._ssh = ProcessUnderTest(argv, environment=login.environment | self._environment())
        for port in self.ports:
            wait_until_listening(port)

    def _command(self) -> list[str]:
        return [program("ssh")]

    def _environment(self) -> dict[str, str]:
        return {}

    def stop(self) -> None:
        if self._ssh is not None:
            self._ssh.stop()
        if self._sshd is not None:
            self._sshd.stop()

    def relay_pids(self) -> list[int]:
        assert self._sshd is not None
        return tree(self._sshd.process.pid)

    def agent_pids(self) -> list[int]:
        assert self._ssh is not None
        return tree(self._ssh.pid)

    @property
    def version(self) -> str:
        return first_line(program("ssh"), "-V").partition(",")[0]


class Autossh(Ssh):
    """The same ssh, kept running by autossh: all it adds is a parent that waits."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "autossh"

    def missing(self) -> str | None:
        return super().missing() or _missing("autossh")

    def _command(self) -> list[str]:
        return [program("autossh"), "-M", "0"]

    def _environment(self) -> dict[str, str]:
        return {"AUTOSSH_GATETIME": "0"}

    @property
    def version(self) -> str:
        return first_line(program("autossh"), "-V")


class Rathole(Carrier):
    """rathole over plain TCP, which encrypts nothing, or over its Noise transport.

    It multiplexes nothing: each visitor gets a TCP connection of its own from the agent's side.
    """

    def __init__(self, *, noise: bool) -> None:
        self._noise = noise
        self.name = "rathole noise" if noise else "rathole plain"
        self._sides: list[ProcessUnderTest] = []

    def missing(self) -> str | None:
        return _missing("rathole")

    def start(self, folder: Path, targets: Sequence[int]) -> None:
        folder.mkdir(mode=0o700)
        self.ports = [free_port() for _ in targets]
        link = f"{LOOPBACK}:{free_port()}"
        server = f'[server]\nbind_addr = "{link}"\ndefault_token = "throw-away"\n'
        client = f'[client]\nremote_addr = "{link}"\ndefault_token = "throw-away"\n'
        if self._noise:
            private, public = self._make_keys()
            server += _noise("server", f'local_private_key = "{private}"')
            client += _noise("client", f'remote_public_key = "{public}"')
        for number, (port, target) in enumerate(zip(self.ports, targets, strict=True)):
            server += f'[server.services.s{number}]\nbind_addr = "{LOOPBACK}:{port}"\n'
            client += f'[client.services.s{number}]\nlocal_addr = "{LOOPBACK}:{target}"\n'
        for side, text in (("server", server), ("client", client)):
            config = folder / f"{side}.toml"
            config.write_text(text)
            argv = [program("rathole"), f"--{side}", str(config)]
            environment = plain_environment(folder)
            self._sides.append(ProcessUnderTest(argv, environment=environment))
        for port in self.ports:
            wait_until_listening(port)

    @staticmethod
    def _make_keys() -> tuple[str, str]:
        done = subprocess.run(
            [program("rathole"), "--genkey"], check=True, capture_output=True, text=True
        )
        lines = [line for line in done.stdout.splitlines() if line and not line.endswith(":")]
        private, public = lines
        return private, public

    def stop(self) -> None:
        for side in self._sides:
            side.stop()
        self._sides.clear()

    def relay_pids(self) -> list[int]:
        return tree(self._sides[0].pid)

    def agent_pids(self) -> list[int]:
        return tree(self._sides[1].pid)

    @property
    def version(self) -> str:
        lines = output(program("rathole"), "--version").splitlines()
        return next((f"rathole {line.split()[-1]}" for line in lines if "ersion" in line), lines[0])


def _noise(side: str, key: str) -> str:
    return f'[{side}.transport]\ntype = "noise"\n[{side}.transport.noise]\n{key}\n'


def _missing(*names: str) -> str | None:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    absent = [name for name in names if shutil.which(name, path=path) is None]
    return f"{', '.join(absent)} not found on PATH" if absent else None


def output(*argv: str) -> str:
    """What a command says about itself, wherever it says it."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    return done.stdout + done.stderr


def first_line(*argv: str) -> str:
    return output(*argv).partition("\n")[0]


# --- Processes -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Usage:
    cpu: float  # seconds, since the processes began
    rss: int  # bytes


def usage(pids: Sequence[int]) -> Usage:
    return Usage(sum(map(cpu_seconds, pids)), sum(map(rss_bytes, pids)))


def tree(pid: int) -> list[int]:
    """A process and all that descends from it."""
    pids = [pid]
    for task in _tasks(pid):
        for child in (task / "children").read_text().split():
            pids += tree(int(child))
    return pids


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads, to the nanosecond where the ticks of /proc are 10 ms."""
    times = [int((task / "schedstat").read_text().split()[0]) for task in _tasks(pid)]
    return sum(times) / 1e9


def _tasks(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
