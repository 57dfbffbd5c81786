"""The machine that was measured, and a loopback where everybody has the same congestion control.

Which congestion control a socket has is the kernel's default, and no option of ssh or sshd changes
it. A route can: so the loopback measurements run in a network namespace of their own, where the
routes say cubic. Without root they run where they are, and the report says with what.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.support.lab import namespace
from tests.support.ports import LOOPBACK

from .carriers import Ssh, usage
from .report import Scalar

CUBIC: Final = "congctl cubic"
# What a machine with nothing else to do spends on its own.
QUIET: Final = 0.05


def describe() -> dict[str, Scalar]:
    ssh = Ssh()
    facts: dict[str, Scalar] = {
        "CPU": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory MB": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 10**6,
        "kernel": platform.release(),
        "Python": platform.python_version(),
    }
    for package in ("trio", "cryptography", "msgpack"):
        facts[package] = importlib.metadata.version(package)
    facts["OpenSSH"] = ssh.version if ssh.missing() is None else "not found"
    facts["default congestion control"] = congestion_control()
    facts["revision"] = _revision()
    facts["measured"] = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    return facts


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return platform.machine()


def _revision() -> str:
    """Of what is measured, if it is a checkout."""
    argv = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    root = Path(__file__).resolve().parent.parent
    with contextlib.suppress(OSError):
        done = subprocess.run(argv, cwd=root, check=False, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"
    return "unknown"


class Others:
    """How much of the machine went to what is no part of the measurement, since this was made.

    Numbers from a machine that did much else say little, and nothing else in them tells.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = _busy_seconds() - _own_seconds()

    def remark(self, pids: Sequence[int]) -> str:
        """For the reader of the numbers; `pids` as in `share`."""
        share = self.share(pids)
        verdict = ": too much for these numbers to count" if share > QUIET else ""
        return f"Meanwhile {share:.1%} of the cores went to other processes or guests{verdict}."

    def share(self, pids: Sequence[int]) -> float:
        """Of all cores; `pids` are started before and still running: theirs is not others'."""
        # What they used before this was made is small and left in, so as not to ask who they are.
        others = _busy_seconds() - _own_seconds() - self._before - usage(pids).cpu
        cores = os.sysconf("SC_NPROCESSORS_ONLN")
        return max(0.0, others / ((time.monotonic() - self._began) * cores))


def _busy_seconds() -> float:
    user, nice, system, _idle, _wait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Of this process and all children that it has waited for, load generators among them."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def congestion_control() -> str:
    """What a connection over loopback has here and now, at either end."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        with near, far:
            found = {
                end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
                for end in (near, far)
            }
    return " and ".join(sorted(found))


@contextlib.contextmanager
def cubic_loopback() -> Iterator[str]:
    """What is started meanwhile talks over a loopback with cubic; yields what is in force.

    For the main thread alone: what looks into /proc/net sees that thread's namespace.
    """
    with contextlib.ExitStack() as stack:
        if congestion_control() != "cubic" and os.getuid() == 0:
            # Root of a container may not make namespaces, and measures with what there is.
            with contextlib.suppress(AssertionError, OSError):
                own = _make_namespace()
                stack.callback(own.remove)
                stack.enter_context(own.entered())
        yield congestion_control()


def _make_namespace() -> namespace.Namespace:
    namespace.remove_leftovers()
    own = namespace.Namespace(f"lab-{os.getpid()}-0-bench")
    own.ip("link set lo up", *(_route(where) for where in ("127.0.0.0/8", LOOPBACK)))
    return own


def _route(where: str) -> str:
    kernels = "dev lo table local proto kernel scope host src 127.0.0.1"
    return f"route replace local {where} {kernels} {CUBIC}"
