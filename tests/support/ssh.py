"""Real SSH: a login of the user who runs the tests, sshd and dropbear.

The servers need no privilege: libnss_wrapper gives them a passwd file where the user has a
throw-away home. No ~/.ssh is read or written, and the servers have no setting that a router's
server would not have.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.blocking_sockets import visit
from tests.support.ports import LOOPBACK, free_port, wait_until_listening
from tests.support.processes import ProcessUnderTest, plain_environment, program, run
from tests.support.waiting import LIMIT, LONG_LIMIT


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
            self._prepare(),
            environment=self._wrapped_environment(),
            cwd=folder,
            own_session=True,  # it is `stop` that ends it, also when Ctrl-C ends what started it
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
