"""Measures with `load`, a process of its own, against a far end."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final, Literal

from tests.support.ports import LOOPBACK
from tests.support.repository import ROOT

Way = Literal["up", "down"]
WAYS: Final[tuple[Way, ...]] = ("up", "down")

# A transfer of a second or so, on a machine that does other things.
LIMIT: Final = 90.0


def command(module: str, *arguments: object) -> list[str]:
    """Without the user's variables and packages, and what looking for these takes."""
    return [sys.executable, "-ESs", "-m", f"benchmarks.{module}", *map(str, arguments)]


def transfer(port: int, way: Way, size: int, *, piece: int, address: str = LOOPBACK) -> float:
    """The seconds that `size` bytes take."""
    seconds = _load(address, port, way, size, piece)
    assert isinstance(seconds, float)
    return seconds


def echo(port: int, *, size: int, count: int, address: str = LOOPBACK) -> list[float]:
    """The seconds that each of `count` round trips takes."""
    seconds = _load(address, port, "echo", size, count)
    assert isinstance(seconds, list)
    return seconds


def _load(*arguments: object) -> object:
    done = subprocess.run(
        command("load", *arguments),
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    result: object = json.loads(done.stdout)
    return result
