"""The agent under systemd: what systemd itself says about the unit, and the install script."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT

LINUX = ROOT / "deploy" / "linux"
UNIT = LINUX / "relay-agent.service"
# Of 10, in tenths: sandboxed as far as something that opens sockets can be.
EXPOSURE = "15"


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
    """A system of which there is just enough for the unit."""
    units = tmp_path / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for target in ("sysinit", "basic", "shutdown", "multi-user", "network"):
        (units / f"{target}.target").write_text("[Unit]\nDescription=stub\n")
    (units / UNIT.name).write_text(UNIT.read_text())
    for program in ("opt/relay-agent/bin/python", "bin/kill"):
        file = tmp_path / program
        file.parent.mkdir(parents=True)
        file.touch(mode=0o755)
    return tmp_path


def test_systemd_understands_all_of_the_unit(root: Path) -> None:
    done = run("systemd-analyze", "verify", f"--root={root}", UNIT.name)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_is_sandboxed(root: Path) -> None:
    done = run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", UNIT)
    assert done.returncode == 0, done.stdout
    assert "User=/DynamicUser=" in done.stdout


def test_it_never_gives_up() -> None:
    lines = UNIT.read_text().splitlines()
    assert {"Restart=always", "StartLimitIntervalSec=0"} <= set(lines)


def test_shellcheck_has_no_complaint() -> None:
    assert run("shellcheck", LINUX / "install").stdout == ""


def test_removing_leaves_the_key(tmp_path: Path) -> None:
    files = [
        tmp_path / "opt/relay-agent/bin/python",
        tmp_path / "usr/local/bin/relay-agent",
        tmp_path / "etc/systemd/system/relay-agent.service",
    ]
    key = tmp_path / "var/lib/relay-agent/agent.key"
    for file in [*files, key]:
        file.parent.mkdir(parents=True)
        file.touch()
    done = run(LINUX / "install", "--remove", DESTDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [file for file in [*files, key] if file.exists()] == [key]
    assert not files[0].parents[1].exists()


def test_a_mistyped_argument_does_nothing(tmp_path: Path) -> None:
    done = run(LINUX / "install", "--purge", DESTDIR=str(tmp_path))
    assert done.returncode == 1
    assert re.fullmatch(r"install: unknown argument: --purge .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []
