"""`relay-agent doctor`: what `relay_agent.doctor` found, as it finds it."""

from __future__ import annotations

import argparse
from typing import Any

import trio

from protocol.process import logs
from protocol.process.command import say, say_json
from protocol.process.examination import Finding, examine, lay_out
from protocol.process.layout import Paint
from protocol.process.state import StateFolder
from relay_agent.doctor import STEPS, Patient


def command(options: argparse.Namespace, state: StateFolder) -> int:
    # What the steps have to say they return.
    logs.configure(options.log_level or "error", options.log_format or "text")
    paint = Paint.of()
    entries: list[dict[str, Any]] = []

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

    well = trio.run(examine, STEPS, Patient(state, options.config), tell)
    if options.json:
        say_json(entries)
    return 0 if well else 1
