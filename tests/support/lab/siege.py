"""Bots at the public port of a lab, and the people who want in meanwhile.

The SSH servers are as they come: nothing of their own limits is set for the test.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.support.lab import bots
from tests.support.lab.network import LAPTOP, SSH_PORT, VPS_TO_LAPTOP, Network
from tests.support.repository import ROOT
from tests.support.ssh import Dropbear, OpenSsh
from tests.support.waiting import LIMIT

# Who is not a bot and has an address of his own; bots come from those of `sources`.
OWNER: Final = "192.0.2.3"
# From one login to the next.
PAUSE: Final = 1.0
# Then a login has failed, whatever it would have come to.
PATIENCE: Final = 10.0


class DefaultDropbear(Dropbear):
    """As OpenWrt starts it: passwords are asked for."""

    def _prepare(self) -> list[str]:
        return [word for word in super()._prepare() if word != "-s"]


class DefaultOpenSsh(OpenSsh):
    def _prepare(self) -> list[str]:
        argv = super()._prepare()
        # What a test machine needs: its port, its key, and its folder in /tmp.
        kept = ("ListenAddress", "Port", "HostKey", "PidFile", "StrictModes")
        config = self.folder / "sshd_config"
        lines = config.read_text().splitlines(keepends=True)
        config.write_text("".join(line for line in lines if line.startswith(kept)))
        return argv


@dataclass(frozen=True, slots=True, kw_only=True)
class Bots:
    """How many of each kind (bots.py) stand there at any time, from how many addresses."""

    sources: Sequence[str]
    idle: int = 0
    slow: int = 0
    stalled: int = 0
    guessing: int = 0

    @property
    def many(self) -> int:
        return self.idle + self.slow + self.stalled + self.guessing

    @property
    def argv(self) -> list[str]:
        argv = [f"--source={source}" for source in self.sources]
        kinds = ("idle", "slow", "stalled", "guessing")
        return argv + [f"--{kind}={getattr(self, kind)}" for kind in kinds]


def addresses(many: int) -> list[str]:
    return [f"192.0.2.{100 + number}" for number in range(many)]


def add_addresses(lab: Network, hosts: Sequence[str]) -> None:
    lab.laptop.ip(*(f"addr add {host}/32 dev lan0" for host in hosts if host != LAPTOP))


@contextlib.contextmanager
def besieged(lab: Network, those: Bots) -> Iterator[dict[str, float]]:
    """Bots all the time; afterwards what they counted is in what this gives."""
    said: dict[str, float] = {}
    argv = [sys.executable, bots.__file__, VPS_TO_LAPTOP, str(SSH_PORT), *those.argv]
    with lab.laptop.entered():
        process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield said
        stdout, _ = process.communicate(timeout=LIMIT)
        said.update(json.loads(stdout))
    finally:
        process.kill()
        process.wait(LIMIT)


@dataclass(slots=True)
class Logins:
    """Logins by key, one after the other."""

    times: list[float] = field(default_factory=list)  # of those that succeeded
    failures: list[str] = field(default_factory=list)

    @property
    def many(self) -> int:
        return len(self.times) + len(self.failures)

    def within(self, limit: float) -> float:
        """The share that succeeded in that time."""
        return sum(took <= limit for took in self.times) / self.many

    @property
    def median(self) -> float:
        return statistics.median(self.times) if self.times else float("nan")

    @property
    def worst(self) -> float:
        return max(self.times, default=float("nan"))

    def one(self, lab: Network, source: str, *, patience: float = PATIENCE) -> None:
        options = ["-oBindAddress=" + source, f"-oConnectTimeout={patience:.0f}"]
        # The first of two options holds.
        argv = lab.login.argv(SSH_PORT, "echo in", host=VPS_TO_LAPTOP)
        argv = [argv[0], *options, *argv[1:]]
        began = time.monotonic()
        with lab.laptop.entered():
            process = subprocess.Popen(
                argv,
                env=lab.login.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            stdout, stderr = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self.failures.append(f"not within {patience:g} s")
            return
        took = time.monotonic() - began
        if (stdout, process.returncode) == ("in\n", 0):
            self.times.append(took)
        else:
            self.failures.append(f"after {took:.1f} s: {stderr.strip()}")

    def go_on(self, lab: Network, source: str, *, seconds: float, pause: float = PAUSE) -> None:
        began = time.monotonic()
        for number in range(int(seconds / pause)):
            time.sleep(max(0.0, began + number * pause - time.monotonic()))
            self.one(lab, source)
            if time.monotonic() >= began + seconds:
                break


class Quiet:
    """Somebody who is logged in and types nothing until the end."""

    def __init__(self, lab: Network) -> None:
        self._ssh = lab.start_ssh("echo up; exec cat")
        assert self._ssh.stdout is not None
        assert self._ssh.stdout.readline() == b"up\n", self._ssh.communicate()

    def finish(self) -> None:
        stdout, stderr = self._ssh.communicate(b"still here\n", timeout=LIMIT)
        assert (stdout, self._ssh.returncode) == (b"still here\n", 0), stderr

    def kill(self) -> None:
        self._ssh.kill()
        self._ssh.communicate()


@contextlib.contextmanager
def quiet(lab: Network) -> Iterator[Quiet]:
    session = Quiet(lab)
    try:
        yield session
    finally:
        session.kill()
