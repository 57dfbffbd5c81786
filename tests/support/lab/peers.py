"""What most people have today, in the same network: autossh on the router, sshd on the VPS.

Both are used as their manuals and the usual recipes have it. Two ways:

    as it comes   no keepalive of ssh's own, as ssh and sshd have it by default
    tuned         both ends ask every 10 s and give up after three questions, and a connection is
                  given 10 s to come about

In both autossh has its monitoring off (-M 0), as is the advice since ssh has keepalives of its own,
and never gives up (AUTOSSH_GATETIME=0); ssh ends where it cannot have the port, for autossh to try
again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Final

from tests.support.lab.namespace import run_ip
from tests.support.lab.network import RELAY_NAME, SSH_PORT, Network
from tests.support.lab.trial import Signs
from tests.support.ports import LOOPBACK, wait_until_listening
from tests.support.processes import ProcessUnderTest, program
from tests.support.ssh import Dropbear, Login, OpenSsh, SshServer
from tests.support.waiting import LIMIT, eventually

VPS_SSH_PORT: Final = 22

SIGNS: Final = Signs(
    noticed=re.compile(
        r"^(autossh: (.*ssh exited|Timeout, server|client_loop: |Connection .*(closed|reset)|"
        r"Read from remote host|packet_write_)|sshd: .*(Timeout|Connection (closed|reset)|"
        r"Read error|[Bb]roken pipe))"
    ),
    lost=re.compile(r"^autossh: .*ssh exited"),
)


def missing() -> str | None:
    """Why this comparison cannot be made here; None if it can."""
    if shutil.which("autossh") is None:
        return "autossh is not installed: run .ci/system-packages lab"
    return None


class VpsSshd(OpenSsh):
    """An sshd that lets ports be forwarded for everybody, and can be started again."""

    def __init__(self, folder: Path, login: Login, *, tuned: bool) -> None:
        self._tuned = tuned
        super().__init__(folder, login)

    def _prepare(self) -> list[str]:
        self.port = VPS_SSH_PORT  # the namespace has it for itself
        self._argv = super()._prepare()
        config = self.folder / "sshd_config"
        text = config.read_text().replace(f"ListenAddress {LOOPBACK}", "ListenAddress 0.0.0.0")
        text += "GatewayPorts clientspecified\n"
        if self._tuned:
            text += "ClientAliveInterval 10\nClientAliveCountMax 3\n"
        config.write_text(text)
        return self._argv

    def start_again(self) -> ProcessUnderTest:
        self.process = ProcessUnderTest(
            self._argv, environment=self._wrapped_environment(), cwd=self.folder
        )
        wait_until_listening(self.port)
        return self.process


class PeerLab(Network):
    """With autossh and sshd."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int | None = None,
        tuned: bool,
        server: type[SshServer] = Dropbear,
    ) -> None:
        super().__init__(folder, seed=seed, server=server)
        self._tuned = tuned

    def _build_way(self, undo: contextlib.ExitStack) -> None:
        with self.vps.entered():
            self.sshd = VpsSshd(self.folder / "sshd", self.login, tuned=self._tuned)
        undo.callback(lambda: self.sshd.stop())
        self.journal.watch("sshd", self.sshd.process)
        self.start_autossh()
        undo.callback(lambda: self.autossh.stop())

    def start_autossh(self) -> ProcessUnderTest:
        inside = [program("ip"), "netns", "exec", self.router.name]
        options = ["-oLogLevel=INFO", "-oExitOnForwardFailure=yes"]
        if self._tuned:
            options += ["-oServerAliveInterval=10", "-oServerAliveCountMax=3"]
            options += ["-oConnectTimeout=10"]
        argv = [*inside, program("autossh"), "-M", "0", "-N", "-T", *options, *self._options]
        argv += ["-R", f"0.0.0.0:{SSH_PORT}:{LOOPBACK}:{self.ssh_server.port}"]
        argv += ["-p", str(VPS_SSH_PORT), RELAY_NAME]
        environment = self.login.environment | {
            "AUTOSSH_GATETIME": "0",
            "AUTOSSH_LOGFILE": "/dev/stderr",
        }
        self.autossh = ProcessUnderTest(argv, environment=environment)
        return self.journal.watch("autossh", self.autossh)

    @property
    def _options(self) -> list[str]:
        """The throw-away key and known hosts, without the time limit that tests have."""
        return [word for word in self.login.options if not word.startswith("-oConnectTimeout")]

    def kill_autossh(self) -> None:
        """With its ssh, at once, as when the power goes."""
        kill_all([self.autossh.pid, *children(self.autossh.pid)])
        self.autossh.kill()

    def kill_sshd(self) -> None:
        """With the processes of all its connections."""
        pids = run_ip("netns", "pids", self.vps.name).split()
        kill_all([int(pid) for pid in pids if int(pid) != self.wan.pid])
        self.sshd.process.kill()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: not any(is_running(pid) for pid in pids), what="the processes end", limit=LIMIT
    )


def is_running(pid: int) -> bool:
    """A dead process that nobody has waited for yet does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
