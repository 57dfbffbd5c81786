"""`relay-agent doctor`: what `relay_agent.doctor.steps` found, as it finds it."""

from __future__ import annotations

import argparse

from protocol.process import logs
from protocol.process.cli.checks import conduct
from protocol.process.state import StateFolder
from relay_agent.doctor.context import Context
from relay_agent.doctor.steps import STEPS


def command(options: argparse.Namespace, state: StateFolder) -> int:
    # What the steps have to say they return.
    logs.configure(options.log_level or "error", options.log_format or "text")
    well = conduct(STEPS, Context(state, options.config), as_json=options.json)
    return 0 if well else 1
