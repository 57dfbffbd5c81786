"""The lab itself: it is what it says, several stand side by side, and nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lab import network as lab_module
from tests.support.lab.namespace import FILES, NAMED, Namespace, leftovers, remove_leftovers
from tests.support.lab.network import (
    LAPTOP,
    RELAY_NAME,
    ROUTER,
    ROUTER_SECOND,
    VPS,
    VPS_SECOND,
    VPS_TO_LAPTOP,
    Lab,
    Names,
    Network,
    bare_network,
    missing,
)
from tests.support.processes import program
from tests.support.repository import ROOT
from tests.support.waiting import LIMIT, eventually

PORT = 4000


def greet(near: Namespace, far: Namespace, address: str) -> str:
    """Connect from `near` to a server in `far`; the address it sees."""
    with far.entered():
        listener = socket.create_server((address, PORT))
    with listener, near.entered(), socket.create_connection((address, PORT), timeout=LIMIT):
        accepted, peer = listener.accept()
        accepted.close()
    return str(peer[0])


def test_who_reaches_whom(network: Network) -> None:
    assert greet(network.laptop, network.vps, VPS_TO_LAPTOP) == LAPTOP
    assert greet(network.router, network.vps, VPS) == ROUTER
    assert greet(network.router, network.vps, VPS_SECOND) == ROUTER
    network.change_router_address()
    assert greet(network.router, network.vps, VPS) == ROUTER_SECOND


def test_the_laptop_does_not_reach_the_router(network: Network) -> None:
    with network.laptop.entered(), socket.socket() as laptop:
        laptop.settimeout(0.3)
        with pytest.raises(TimeoutError):
            laptop.connect((ROUTER, PORT))


def test_nobody_reaches_beyond_the_machine(network: Network) -> None:
    for namespace in (network.laptop, network.vps, network.router):
        with namespace.entered():
            interfaces = {name for _, name in socket.if_nameindex()}
        assert interfaces <= {"lo", "lan0", network.wan.device}


def test_two_labs_share_nothing(network: Network) -> None:
    with (
        bare_network() as other,
        network.vps.entered(),
        socket.create_server((VPS, PORT)),
    ):
        assert greet(other.router, other.vps, VPS) == ROUTER
        other.wan.hole()
        with network.router.entered():
            socket.create_connection((VPS, PORT), timeout=LIMIT).close()


def test_a_thread_comes_back_from_a_namespace(network: Network) -> None:
    mine = Path("/proc/thread-self/ns/net")
    here = mine.readlink()
    with contextlib.suppress(KeyError), network.vps.entered():
        there = mine.readlink()
        raise KeyError
    assert there != here == mine.readlink()


# --- Names ---------------------------------------------------------------------------------------


def look_up(lab: Network, name: str) -> str:
    """What the router's C library makes of `name`: its address, or why there is none."""
    code = "import socket, sys; print(*{a[4][0] for a in socket.getaddrinfo(sys.argv[1], 1)})"
    argv = [program("ip"), "netns", "exec", lab.router.name, sys.executable, "-c", code, name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT, check=False)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def test_names(network: Network) -> None:
    names = Names(network.router)
    try:
        assert look_up(network, RELAY_NAME) == VPS
        names.addresses[RELAY_NAME] = VPS_SECOND
        assert look_up(network, RELAY_NAME) == VPS_SECOND
        assert "not known" in look_up(network, "elsewhere.lab")
        # One try of a second is enough to tell.
        network.router.write_file("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1\n")
        names.silent = True
        assert "Temporary failure" in look_up(network, RELAY_NAME)
    finally:
        names.stop()


# --- The end -------------------------------------------------------------------------------------


def test_nothing_is_left(possible: None, tmp_path: Path, enrolled: Path) -> None:
    with Lab(tmp_path, enrolled=enrolled) as lab:
        lab.wait_for_banner(limit=LIMIT)
        pids = [process.pid for process in lab.journal.processes()] + [lab.wan.pid]
        namespaces = [lab.laptop.name, lab.vps.name, lab.router.name]
        with lab.router.entered():
            stray = subprocess.Popen([program("sleep"), "600"])
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert stray.wait(LIMIT) == -signal.SIGKILL
    for name in namespaces:
        assert not (NAMED / name).exists()
        assert not (FILES / name).exists()


KILLED = """
import subprocess, time
from tests.support.lab.network import Names, bare_network
with bare_network() as lab:
    Names(lab.router)
    with lab.router.entered():
        stray = subprocess.Popen(["sleep", "600"])
    print(stray.pid, lab.wan.pid, lab.router.name, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_run_left_is_removed_by_the_next(possible: None) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with run:
        assert run.stdout is not None
        run.stdout.readline()  # the seed
        stray, wan, router = run.stdout.readline().split()
        assert router not in leftovers()
        run.kill()
    # Not ours to wait for, but it ends by itself.
    eventually(lambda: not alive(int(wan)), what="the forwarder ends")
    # Another run, in parallel, may be the next one as well.
    remove_leftovers()
    eventually(lambda: not (NAMED / router).exists(), what="the namespaces are removed")
    eventually(lambda: not alive(int(stray)), what="the process is ended")
    assert not (FILES / router).exists()


def alive(pid: int) -> bool:
    """A dead process that nobody has waited for yet does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- Where there can be no lab -------------------------------------------------------------------


def test_without_root_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in (missing() or "")


def test_without_iproute2_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "iproute2" in (missing() or "")


def test_root_that_may_not_is_told_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(_: str) -> Namespace:
        raise AssertionError("ip netns add:\nOperation not permitted")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(lab_module, "Namespace", forbid)
    reason = missing() or ""
    assert "Operation not permitted" in reason
    assert "\n" not in reason


def test_with_everything_there_is_no_reason(possible: None) -> None:
    assert missing() is None
