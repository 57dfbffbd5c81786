"""The benchmarks run and say what they found. What they found is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.repository import ROOT
from tests.support.waiting import LONG_LIMIT


def measure(out: Path, *options: str) -> Any:
    """What `python -m benchmarks` with `options` writes to `results.json`."""
    argv = [sys.executable, "-m", "benchmarks", *options, "--out", str(out)]
    done = subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LONG_LIMIT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (out / "results.md").read_text()
    return json.loads((out / "results.json").read_text())


def test_loopback(tmp_path: Path) -> None:
    results = measure(
        tmp_path, "--quick", "--only", "loopback", "--seconds", "0.001", "--rounds", "1"
    )
    assert {"cores", "kernel", "Python", "default congestion control"} <= set(results["machine"])
    ours = {
        (one["name"], one["unit"]): one
        for one in results["measurements"]
        if one["carrier"] == "ssh-relay" and not one["parameters"]
    }
    ways = [(f"{what} {way}", unit) for way in ("up", "down") for what, unit in UNITS.items()]
    assert set(ours) == {*ways, ("round trip p50", "µs"), ("round trip p99", "µs")}
    for one in ours.values():
        assert len(one["values"]) == 1
        assert one["values"] == [one["median"]]
        assert one["median"] > 0
    assert {"ssh-relay", "ssh -R", "ssh -R aes128-gcm"} <= carriers(results)
    assert [one["number"] for one in results["targets"]] == ["1"] * 4 + ["2"] * 3 + ["3"] * 2
    for one in results["targets"]:
        assert one["measured"] > 0
        assert isinstance(one["holds"], bool)
    for plot in results["plots"]:
        assert plot["series"]


def test_many_streams_visitors_and_agents(tmp_path: Path) -> None:
    results = measure(tmp_path, "--trial", "--only", "scale")
    assert {one["number"] for one in results["targets"]} == {"6", "7", "8", "9"}
    assert carriers(results) >= {"ssh-relay", "ssh -R aes128-gcm", "bare imports"}
    assert {one["name"] for one in results["plots"]} == {"memory-by-streams", "memory-by-agents"}
    failed = next(one for one in results["targets"] if one["name"] == "visitors without an echo")
    assert failed["measured"] == 0


UNITS = {"throughput": "MB/s", "CPU": "s/GB"}


def carriers(results: dict[str, list[dict[str, object]]]) -> set[object]:
    return {one["carrier"] for one in results["measurements"]}
