"""`relay-server doctor`: what `relay_server.doctor.steps` found, as it finds it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from protocol.process import logs
from protocol.process.state import StateFolder
from relay_server.commands.options import add_command

_EXAMPLES: Final = """\
examples:
  sudo relay-server doctor        root may read the firewall's rules, too
  relay-server doctor --json | jq '.[] | select(.verdict == "failed")'

Nothing is changed, and a running relay is not disturbed. The exit status is 0
if no step failed. Whether agents and visitors get here from elsewhere is seen
from there: run relay-agent doctor on the router.
"""


def add(commands: Any) -> None:
    summary = "examine what the relay stands on, and say what to do"
    parser = add_command(commands, "doctor", examine_relay, summary)
    parser.epilog = _EXAMPLES
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the options that the relay is run with (default: server.toml in the state folder)",
    )


def examine_relay(options: argparse.Namespace, state: StateFolder) -> int:
    # Only here: the other commands need none of it and are done sooner.
    from protocol.process.cli.checks import conduct
    from relay_server.doctor.steps import STEPS, Context

    # What the steps have to say they return.
    logs.configure(options.log_level or "error", options.log_format or "text")
    well = conduct(STEPS, Context(state, options.config), as_json=options.json)
    return 0 if well else 1
