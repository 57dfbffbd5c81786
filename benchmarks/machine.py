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
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.e2e.harness import LOOPBACK
from tests.lab import namespace

from .carriers import Ssh
from .report import Scalar

CUBIC: Final = "congctl cubic"


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
    if congestion_control() == "cubic" or os.getuid() != 0:
        yield congestion_control()
        return
    namespace.remove_leftovers()
    own = namespace.Namespace(f"lab-{os.getpid()}-0-bench")
    try:
        own.ip("link set lo up", *(_route(where) for where in ("127.0.0.0/8", LOOPBACK)))
        with own.entered():
            yield congestion_control()
    finally:
        own.remove()


def _route(where: str) -> str:
    kernels = "dev lo table local proto kernel scope host src 127.0.0.1"
    return f"route replace local {where} {kernels} {CUBIC}"
