"""A real ssh login through an agent of the OpenWrt package on a 32-bit MIPS processor, emulated.

Run by `make openwrt-mips`, which fetches Debian's Python for that processor. What the emulation
proves is the byte order's and the word size's part: sizes of C structs, constants of the kernel
that differ on MIPS, and integers beyond 32 bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.openwrt_package import unpack_package
from tests.support.ports import LOOPBACK, free_port
from tests.support.processes import run
from tests.support.programs import Agent, Relay
from tests.support.ssh import Login, SshServer
from tests.support.waiting import LONG_LIMIT

# Enough for many records, acks and updates of credit.
SIZE = 2_000_000


@pytest.fixture(scope="module")
def python() -> list[str]:
    root = os.environ["MIPSEL_ROOT"]
    return ["qemu-mipsel-static", "-L", root, f"{root}/usr/bin/python3", "-I"]


def test_it_is_such_a_processor(python: list[str]) -> None:
    code = "import platform, sys; print(platform.machine(), sys.maxsize, sys.byteorder)"
    done = run([*python, "-c", code], environment=os.environ)
    assert done.stdout == f"mips {2**31 - 1} little\n"


def test_a_real_login(
    python: list[str],
    new_relay: Callable[..., Relay],
    tmp_path: Path,
    login: Login,
    dropbear: SshServer,
) -> None:
    lib, _ = unpack_package(tmp_path)
    shim = Path(__file__).parents[1] / "support" / "debian_12.py"
    relay, agent = new_relay(), Agent(tmp_path / "router", [*python, str(shim), str(lib)])
    port = free_port()
    relay.start()
    try:
        invitation = relay.invite("router", port, hosts=[f"localhost:{relay.port}"])
        agent.join(invitation, f"ssh={LOOPBACK}:{dropbear.port}")
        agent.start()
        agent.process.wait_for_line("service-up", limit=LONG_LIMIT)
        done = login.ssh(port, f"head -c {SIZE} /dev/zero | tr '\\0' x; exit 3")
        assert (done.returncode, len(done.stdout)) == (3, SIZE), done.stderr
        assert login.ssh(port, "wc -c", "</etc/passwd").returncode == 0
    finally:
        agent.stop()
    assert "Traceback" not in agent.process.describe()
