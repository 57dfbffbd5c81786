from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.process.address import HostPort
from protocol.process.cli.checks import Verdict
from protocol.process.state import StateFolder
from relay_server.doctor import host
from relay_server.doctor.context import Context
from relay_server.doctor.host import (
    check_address,
    check_clock,
    check_firewall,
    check_service,
    output,
)

Program = Callable[[str, str], None]

CONTEXT = Context(StateFolder(Path("/nowhere")))


def told(*hosts: HostPort) -> Context:
    """Agents are told to dial these."""
    return replace(CONTEXT, hosts=hosts, link_ports=(7022,))


def open_at(*ports: int) -> Context:
    return replace(CONTEXT, link_ports=ports)


SOUND = """\
LoadState=loaded
ActiveState=active
UnitFileState=enabled
NRestarts=2
FileDescriptorStoreMax=4096
WatchdogUSec=30s
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Put a program of the given name on the PATH, which says something."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, says: str) -> None:
        (folder / f"{name}.says").write_text(says)
        file = folder / name
        file.write_text(f'#!/bin/sh\ncat "{folder}/{name}.says"\n')
        file.chmod(0o755)

    return make


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "has_systemd", lambda: True)


@pytest.fixture
def without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "has_systemd", lambda: False)


# The service


@pytest.mark.usefixtures("without_systemd")
async def test_without_systemd_nobody_may_start_it_again() -> None:
    finding = await check_service(CONTEXT)
    assert finding.verdict is Verdict.NOTE
    assert "no systemd" in finding.found


@pytest.mark.usefixtures("systemd")
async def test_a_unit_as_it_should_be(program: Program) -> None:
    program("systemctl", SOUND)
    finding = await check_service(CONTEXT)
    assert finding.verdict is Verdict.OK
    assert "active, and was started again 2 times" in finding.found


@pytest.mark.usefixtures("systemd")
@pytest.mark.parametrize(
    ("now", "instead", "verdict", "words"),
    [
        ("LoadState=loaded", "LoadState=not-found", Verdict.NOTE, "there is no"),
        ("ActiveState=active", "ActiveState=failed", Verdict.FAILED, "has failed"),
        ("=enabled", "=disabled", Verdict.NOTE, "not started at boot"),
        ("StoreMax=4096", "StoreMax=0", Verdict.NOTE, "do not outlive a restart"),
        ("WatchdogUSec=30s", "WatchdogUSec=0", Verdict.NOTE, "nobody notices if it hangs"),
        ("WatchdogUSec=30s", "WatchdogUSec=infinity", Verdict.NOTE, "if it hangs"),
    ],
)
async def test_a_unit_that_lacks_something(
    program: Program, now: str, instead: str, verdict: Verdict, words: str
) -> None:
    program("systemctl", SOUND.replace(now, instead))
    finding = await check_service(CONTEXT)
    assert finding.verdict is verdict
    assert words in finding.found
    assert finding.advice


@pytest.mark.usefixtures("systemd")
async def test_a_systemctl_that_fails_is_told(program: Program, tmp_path: Path) -> None:
    program("systemctl", "")
    (tmp_path / "bin" / "systemctl").write_text("#!/bin/sh\nexit 1\n")
    finding = await check_service(CONTEXT)
    assert finding.verdict is Verdict.NOTE
    assert "does not answer" in finding.found


# The clock


@pytest.mark.parametrize(
    ("now", "kernel", "verdict"),
    [
        (1_764_547_199, 0, Verdict.FAILED),
        (1_764_547_200, 0, Verdict.OK),
        (1_800_000_000, 5, Verdict.NOTE),
        (1_800_000_000, -1, Verdict.OK),  # it may not be asked in some containers
    ],
)
async def test_the_clock(
    monkeypatch: pytest.MonkeyPatch, now: float, kernel: int, verdict: Verdict
) -> None:
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(host, "_kernel_clock", lambda: kernel)
    assert (await check_clock(CONTEXT)).verdict is verdict


def test_the_kernel_is_asked() -> None:
    assert -1 <= host._kernel_clock() <= 5


# The address


async def test_no_address_is_known() -> None:
    finding = await check_address(told())
    assert finding.verdict is Verdict.NOTE
    assert "--host" in finding.advice


async def test_an_address_of_this_machine_that_only_it_reaches() -> None:
    finding = await check_address(told(HostPort("127.0.0.1", 7022)))
    assert finding.verdict is Verdict.NOTE
    assert "127.0.0.1 is not reached from the Internet" in finding.found
    assert "no address of this machine" not in finding.found


async def test_an_address_of_the_internet_that_is_not_ours() -> None:
    # Of a documentation network, which no machine has; the standard library knows it, too.
    finding = await check_address(told(HostPort("192.0.2.9", 7022)))
    assert "192.0.2.9 is no address of this machine, so behind NAT" in finding.found


async def test_a_port_that_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_is_ours", lambda address: True)
    hosts = [HostPort("8.8.8.8", 7022), HostPort("8.8.8.8", 443)]
    assert (await check_address(told(*hosts[:1]))).verdict is Verdict.OK
    finding = await check_address(told(*hosts))
    assert finding.verdict is Verdict.NOTE
    assert "does not listen on port 443 itself" in finding.found


async def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(_: str) -> list[str]:
        return []

    monkeypatch.setattr(host, "_look_up", nobody)
    finding = await check_address(told(HostPort("vps.example.net", 7022)))
    assert finding.verdict is Verdict.FAILED
    assert "vps.example.net does not resolve" in finding.found


async def test_a_name_is_looked_up() -> None:
    assert "127.0.0.1" in await host._look_up("localhost")
    assert await host._look_up("127.0.0.1") == ["127.0.0.1"]
    assert await host._look_up("no.such.name.invalid") == []


# The firewall

DROPS = '{"nftables": [{"chain": {"hook": "input", "policy": "drop"}}]}'


async def test_a_firewall_that_drops_and_names_no_port(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program("nft", DROPS)
    program("iptables", "-P INPUT DROP\n-A INPUT -p tcp --dport 7022 -j ACCEPT\n")
    finding = await check_firewall(open_at(7022, 11111))
    assert finding.verdict is Verdict.NOTE
    assert "no rule names port 7022, 11111" in finding.found
    assert finding.advice.endswith("see: nft list ruleset"), "iptables opens 7022, nft nothing"
    program("iptables", "-P INPUT DROP\n")
    program("nft", '{"nftables": []}')
    assert (await check_firewall(open_at(7022))).advice.endswith("see: iptables -S")
    program("iptables", "-P INPUT ACCEPT\n")
    finding = await check_firewall(open_at(7022, 11111))
    assert finding.verdict is Verdict.OK
    assert "as far as can be seen" in finding.found


async def test_only_root_may_look(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    program("nft", DROPS)
    finding = await check_firewall(open_at(7022))
    assert finding.verdict is Verdict.NOTE
    assert "only root" in finding.found


async def test_a_machine_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_program", lambda name: None)
    finding = await check_firewall(open_at(7022))
    assert finding.verdict is Verdict.OK
    assert "no firewall of its own" in finding.found
    assert await output("nft") is None


async def test_a_program_that_hangs_is_given_up(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("nft", "")
    (tmp_path / "bin" / "nft").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(host, "PATIENCE", 0.05)
    assert await output("nft") is None
