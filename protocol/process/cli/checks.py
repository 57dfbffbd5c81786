"""How a doctor works: steps in a table, each with what it found and what to do about it.

A step whose needs failed is not tried: what it would find is known, and where the trouble is, too.
"""

from __future__ import annotations

import argparse
import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import trio

from protocol.process import logs
from protocol.process.cli.command import say, say_json
from protocol.process.cli.text import Colour, Paint, wrapped
from protocol.process.control.schema import FindingEntry
from protocol.process.limits import small_buffers

# A program that was just started opens its control socket within that time, and an agent's link is
# up or on its way.
SETTLE_TIMEOUT: Final = 3.0
POLL_INTERVAL: Final = 0.2

_Context = TypeVar("_Context")


class Verdict(enum.Enum):
    OK = "ok"
    NOTE = "note"  # works, and might work better
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    verdict: Verdict
    found: str
    advice: str = ""


def ok(found: str) -> Finding:
    return Finding(Verdict.OK, found)


def note(found: str, advice: str = "") -> Finding:
    return Finding(Verdict.NOTE, found, advice)


def failed(found: str, advice: str) -> Finding:
    return Finding(Verdict.FAILED, found, advice)


@dataclass(frozen=True, slots=True)
class Step(Generic[_Context]):
    name: str
    check: Callable[[_Context], Awaitable[Finding]]
    needs: tuple[str, ...] = ()


async def examine(
    steps: Sequence[Step[_Context]],
    context: _Context,
    tell: Callable[[str, Finding], None],
) -> bool:
    """Take all steps in order and `tell` of each; whether none failed."""
    findings: dict[str, Finding] = {}
    for step in steps:
        missing = [name for name in step.needs if _is_missing(findings[name])]
        if missing:
            finding = Finding(Verdict.SKIPPED, f"not tried without {missing[0]}")
        else:
            finding = await step.check(context)
        findings[step.name] = finding
        tell(step.name, finding)
    return all(finding.verdict is not Verdict.FAILED for finding in findings.values())


def _is_missing(finding: Finding) -> bool:
    return finding.verdict in (Verdict.FAILED, Verdict.SKIPPED)


# What both sides look for

# No clock that runs right is before this software was written (2025-12-01).
WRITTEN: Final = 1_764_547_200


def check_buffers(wanted: int) -> Finding:
    """Whether TCP may have so many bytes under way."""
    small = small_buffers(wanted)
    if not small:
        return ok(f"TCP may have {wanted} bytes under way")
    settings = ", ".join(f"{name} has {most} at most" for name, most in small.items())
    return note(
        f"{settings}, wanted are {wanted}: one stream cannot fill a fast and distant link",
        f"only if you care: raise the third number with sysctl -w {next(iter(small))}",
    )


_MARKS: Final[dict[Verdict, tuple[str, Colour]]] = {
    Verdict.OK: ("ok", "green"),
    Verdict.NOTE: ("note", "yellow"),
    Verdict.FAILED: ("FAIL", "red"),
    Verdict.SKIPPED: ("-", "dim"),
}
# "FAIL  handshake  "
_INDENT: Final = " " * 17


def lay_out(name: str, finding: Finding, paint: Paint) -> str:
    mark, colour = _MARKS[finding.verdict]
    # Peers have their words in it: one line, whatever they are.
    found = " ".join(finding.found.split())
    text = wrapped(found, f"{mark:4}  {name:9}  ", _INDENT)
    text = paint(colour, text[:4]) + text[4:]
    if finding.advice:
        text += "\n" + wrapped(finding.advice, f"{_INDENT}-> ", f"{_INDENT}   ")
    return text + "\n"


def conduct(steps: Sequence[Step[_Context]], context: _Context, options: argparse.Namespace) -> int:
    """Take all steps, and say what each finds as it finds it; the exit status.

    `options` has those of `add_json_option` and of the log.
    """
    # The steps return what they have to say, so the log is only for what goes wrong.
    logs.configure(options.log_level or "error", options.log_format or "text")
    paint = Paint.of()
    entries: list[FindingEntry] = []

    def tell(name: str, finding: Finding) -> None:
        if not options.json:
            say(lay_out(name, finding, paint))
        entries.append(
            {
                "step": name,
                "verdict": finding.verdict.value,
                "found": finding.found,
                "advice": finding.advice,
            }
        )

    well = trio.run(examine, steps, context, tell)
    if options.json:
        say_json(entries)
    return 0 if well else 1
