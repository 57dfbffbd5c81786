"""All targets for a while, or what one of them found once more.

    python -m tests.fuzz [--seconds 600] [TARGET …]
    python -m tests.fuzz --replay TARGET FILE …     without the fuzzer, with the whole traceback

What a run learns is kept in .fuzz/, and the next goes on from there. It fails on a finding: an
assertion of the target, an error that none of them expects, 10 s or 1 GiB for one input.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.repository import ROOT

SEEDS: Final = Path(__file__).with_name("corpus")
KEPT: Final = ROOT / ".fuzz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    share: int = 1  # of the time
    longest: int = 4096  # bytes of input


# What has state gets more of the time than what has none.
TARGETS: Final = {
    "body": Target(),
    "frame": Target(),
    "handshake": Target(share=2),
    "hello": Target(),
    "invitation": Target(),
    "peer": Target(share=4, longest=1024),
    "record": Target(),
    "session": Target(share=4, longest=512),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together")
    parser.add_argument("--replay", metavar="TARGET", choices=TARGETS)
    parser.add_argument("names", nargs="*", metavar="TARGET|FILE")
    arguments = parser.parse_args()
    if arguments.replay:
        replay(arguments.replay, [Path(name) for name in arguments.names])
        return 0
    names = arguments.names or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target is called {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    whole = sum(TARGETS[name].share for name in names)
    print(f"{'target':<12}{'seconds':>8}{'inputs':>10}{'a second':>10}{'edges':>8}{'kept':>7}")
    found = [run(name, max(1, arguments.seconds * TARGETS[name].share // whole)) for name in names]
    return int(any(found))


def run(name: str, seconds: int) -> bool:
    """Whether something was found."""
    corpus, findings = KEPT / "corpus" / name, KEPT / "found"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.engine", name),
            f"-max_total_time={seconds}",
            f"-max_len={TARGETS[name].longest}",
            # Small inputs are the rule, but the seeds of whole exchanges are to be built upon now.
            "-len_control=20",
            "-timeout=10",
            "-rss_limit_mb=1024",
            f"-artifact_prefix={findings}/{name}-",
            "-print_final_stats=1",
            *(str(corpus), str(SEEDS / name)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    inputs = _last(done.stdout, r"number_of_executed_units: (\d+)")
    speed = _last(done.stdout, r"average_exec_per_sec: +(\d+)")
    edges, kept = _last(done.stdout, r"cov: (\d+)"), _last(done.stdout, r"corp: (\d+)")
    print(f"{name:<12}{seconds:>8}{inputs:>10}{speed:>10}{edges:>8}{kept:>7}", flush=True)
    if done.returncode == 0:
        return False
    print(done.stdout[-6000:])
    print(f"\n{name}: FOUND something (status {done.returncode}). To see it again:")
    for path in re.findall(r"Test unit written to (\S+)", done.stdout):
        print(f"    {sys.executable} -m tests.fuzz --replay {name} {path}")
    print(f"Once it is fixed, keep that file as {SEEDS.relative_to(ROOT)}/{name}/found-…")
    return True


def _last(output: str, pattern: str) -> str:
    matches = re.findall(pattern, output)
    return matches[-1] if matches else "?"


def replay(name: str, paths: list[Path]) -> None:
    target = importlib.import_module(f"tests.fuzz.{name}")
    for path in paths:
        target.fuzz_one(path.read_bytes())
        print(f"{path}: nothing is wrong")


if __name__ == "__main__":
    sys.exit(main())
