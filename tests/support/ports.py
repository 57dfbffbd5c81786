"""Free ports of this machine, and whether one is listened on."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

from tests.support.waiting import LIMIT, eventually

LOOPBACK = "127.0.0.1"

_handed_out: set[int] = set()
# Below those that the kernel gives to outgoing sockets, which could take one before its user does.
_FIRST, _END = 12_000, 32_000
# Not the shared generator, which hypothesis seeds alike in every run.
_random = random.SystemRandom()


def free_port() -> int:
    """A TCP port that nobody uses on any address of this machine.

    Each worker of a test run has ports of its own: what one is given another one, which sees that
    nobody has bound it yet, must not be. The random choice keeps runs apart that share the machine.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (_END - _FIRST) // workers
    while True:
        port = _FIRST + number * size + _random.randrange(size)
        if port not in _handed_out and _can_bind(port):
            _handed_out.add(port)
            return port


def _can_bind(port: int) -> bool:
    with socket.socket(socket.AF_INET) as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return not listens(port)


def listens(port: int) -> bool:
    """Whether a socket of this machine listens on `port`, learned without touching it."""
    listen_state, suffix = "0A", f":{port:04X}"
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():  # no IPv6 in this kernel
            continue
        for line in table.read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == listen_state and local.endswith(suffix):
                return True
    return False


def wait_until_listening(port: int, *, limit: float = LIMIT) -> None:
    eventually(lambda: listens(port), what=f"port {port} listens", limit=limit)


def wait_until_closed(port: int, *, limit: float = LIMIT) -> None:
    eventually(lambda: not listens(port), what=f"port {port} is closed", limit=limit)
