from __future__ import annotations

from functools import partial

from protocol.process.cli.checks import (
    Finding,
    Step,
    Verdict,
    examine,
    failed,
    lay_out,
    note,
    ok,
)
from protocol.process.cli.text import Paint


async def gives(finding: Finding, taken: list[Finding]) -> Finding:
    taken.append(finding)
    return finding


def step(name: str, finding: Finding, *needs: str) -> Step[list[Finding]]:
    return Step(name, partial(gives, finding), needs)


async def verdicts(*steps: Step[list[Finding]]) -> tuple[bool, dict[str, Verdict]]:
    told: dict[str, Finding] = {}
    taken: list[Finding] = []
    well = await examine(steps, taken, told.__setitem__)
    assert len(taken) == sum(one.verdict is not Verdict.SKIPPED for one in told.values())
    return well, {name: one.verdict for name, one in told.items()}


async def test_what_needs_a_step_that_failed_is_not_tried() -> None:
    assert await verdicts(
        step("name", failed("no", "do")),
        step("connect", ok("yes"), "name"),
        step("key", ok("yes"), "connect"),
        step("clock", ok("yes")),
    ) == (
        False,
        {
            "name": Verdict.FAILED,
            "connect": Verdict.SKIPPED,
            "key": Verdict.SKIPPED,
            "clock": Verdict.OK,
        },
    )


async def test_a_note_is_no_failure_and_stops_nothing() -> None:
    well, found = await verdicts(step("name", note("so so")), step("connect", ok("yes"), "name"))
    assert well
    assert found == {"name": Verdict.NOTE, "connect": Verdict.OK}


def test_a_finding_is_laid_out_in_80_columns() -> None:
    text = lay_out("connect", failed("word\n" * 30, "do " * 40), Paint(on=False))
    first, *others = text.splitlines()
    assert first.startswith("FAIL  connect    word word")
    assert all(line.startswith(" " * 17) for line in others)
    assert any(line.startswith(" " * 17 + "-> do do") for line in others)
    assert all(len(line) <= 80 for line in (first, *others))
    assert lay_out("key", ok("yes"), Paint(on=True)) == "\x1b[32mok  \x1b[0m  key        yes\n"
