"""Measure ours and each peer found on PATH, in the same minutes; tell it as JSON, text and plots.

python -m benchmarks [--quick | --trial] [--only NAME…] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from . import machine, report
from .report import Findings, Plan, Unable

# Each module has a `run(plan: Plan) -> Findings`, and is imported only when its turn has come.
PARTS: Final = {
    "loopback": "benchmarks.loopback",
    "wan": "benchmarks.wan",
    "scale": "benchmarks.scale",
}

QUICK_ROUNDS: Final = 3
FULL_ROUNDS: Final = 5


def main() -> int:
    options = parse(sys.argv[1:])
    # Ended from outside, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    findings = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as work:
        for name in options.only or PARTS:
            folder = Path(work) / name
            folder.mkdir()
            plan = Plan(
                quick=options.quick,
                trial=options.trial,
                rounds=options.rounds,
                seconds=options.seconds,
                work=folder,
            )
            say(f"== {name}")
            findings.append(run(name, plan))
    said = report.write(options.out, machine.describe(), findings)
    sys.stdout.write(said)
    say(f"Written to {options.out}")
    return 0


def run(name: str, plan: Plan) -> Findings:
    part = importlib.import_module(PARTS[name])
    try:
        return cast(Callable[[Plan], Findings], part.run)(plan)
    except Unable as reason:
        return Findings(title=name, notes=(f"Not measured: {reason}.",))


class Options(argparse.Namespace):
    quick: bool
    trial: bool
    only: list[str]
    out: Path
    rounds: int
    seconds: float


def parse(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter ones")
    parser.add_argument("--trial", action="store_true", help="only see that `scale` runs")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=[], metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), metavar="FOLDER")
    parser.add_argument("--rounds", type=int, help="of each measurement")
    parser.add_argument("--seconds", type=float, help="that a transfer is to last")
    options = parser.parse_args(arguments, namespace=Options())
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else FULL_ROUNDS)
    options.seconds = options.seconds or (0.5 if options.quick else 1.0)
    return options


def say(line: str) -> None:
    """To stderr, so that stdout is the report alone."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
