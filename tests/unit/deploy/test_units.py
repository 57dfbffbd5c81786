"""The services under systemd: what systemd itself says about the units, and the install script."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.repository import ROOT

SYSTEMD = ROOT / "deploy" / "systemd"
INSTALL = SYSTEMD / "install"
NAMES = ["relay-agent", "relay-server"]
# Of 10, in tenths: sandboxed as far as something that opens sockets can be.
EXPOSURE = "15"
WITH_LOW_PORTS = "17"


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system of which there is just enough for the units."""
    units = tmp_path / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for target in ("sysinit", "basic", "shutdown", "multi-user", "network", "sockets"):
        (units / f"{target}.target").write_text("[Unit]\nDescription=stub\n")
    for unit in (*SYSTEMD.glob("*.service"), *SYSTEMD.glob("*.socket")):
        (units / unit.name).write_text(unit.read_text())
    for program in ("opt/relay-agent/bin/python", "opt/relay-server/bin/python", "bin/kill"):
        file = tmp_path / program
        file.parent.mkdir(parents=True)
        file.touch(mode=0o755)
    return tmp_path


@pytest.mark.parametrize("unit", ["relay-agent.service", "relay-server.service"])
def test_systemd_understands_all_of_the_unit(root: Path, unit: str) -> None:
    done = run("systemd-analyze", "verify", f"--root={root}", unit)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_understands_the_socket(root: Path) -> None:
    done = run("systemd-analyze", "verify", f"--root={root}", "relay-server.socket")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_sandboxed(name: str) -> None:
    assert_exposure(SYSTEMD / f"{name}.service", EXPOSURE)


def test_it_is_sandboxed_with_ports_below_1024_too(tmp_path: Path) -> None:
    unit = tmp_path / "relay-server.service"
    # Of an option that is given twice the latter counts, as it does in a drop-in.
    service, install = (SYSTEMD / unit.name).read_text().split("[Install]")
    unit.write_text(f"{service}{(SYSTEMD / 'low-ports.conf').read_text()}[Install]{install}")
    assert_exposure(unit, WITH_LOW_PORTS)


def assert_exposure(unit: Path, threshold: str) -> None:
    done = run("systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", unit)
    assert done.returncode == 0, done.stdout
    assert "User=/DynamicUser=" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_it_never_gives_up(name: str) -> None:
    lines = (SYSTEMD / f"{name}.service").read_text().splitlines()
    assert {"Restart=always", "StartLimitIntervalSec=0"} <= set(lines)


def test_shellcheck_has_no_complaint() -> None:
    assert run("shellcheck", INSTALL).stdout == ""


@pytest.mark.parametrize("name", NAMES)
def test_removing_leaves_the_key(name: str, tmp_path: Path) -> None:
    files = [
        tmp_path / f"opt/{name}/bin/python",
        tmp_path / f"opt/{name}.old/bin/python",
        tmp_path / f"usr/local/bin/{name}",
        tmp_path / f"etc/systemd/system/{name}.service",
    ]
    key = tmp_path / f"var/lib/{name}/key"
    for file in [*files, key]:
        file.parent.mkdir(parents=True)
        file.touch()
    done = run(INSTALL, name, "--remove", DESTDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [file for file in [*files, key] if file.exists()] == [key]
    assert not files[0].parents[1].exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "none"),
        (["relay"], "relay"),
        (["relay-agent", "--purge"], "--purge"),
        (["relay-server", "--remove", "now"], "--remove"),
    ],
)
def test_a_mistyped_argument_does_nothing(arguments: list[str], named: str, tmp_path: Path) -> None:
    done = run(INSTALL, *arguments, DESTDIR=str(tmp_path))
    assert done.returncode == 1
    assert re.fullmatch(rf"install: unknown argument: {named} .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []
