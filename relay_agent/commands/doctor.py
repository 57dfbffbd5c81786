"""`relay-agent doctor`: what `relay_agent.doctor.steps` found, as it finds it."""

from __future__ import annotations

import argparse
from typing import Final

from protocol.process.cli.command_line import add_config_option, add_json_option
from protocol.process.state import StateFolder
from relay_agent import CONFIG_FILE

_DESCRIPTION: Final = """\
Go the whole way from this machine to a visitor, step by step, and say of each
what was found and what to do. Beside a running agent it disturbs nothing.
The exit status is 0 if no step failed; a note is no failure.
"""
_EXAMPLES: Final = """\
examples:
  relay-agent doctor
  relay-agent doctor --json

What its findings mean, with examples: docs/troubleshooting.md
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    add_json_option(parser)
    add_config_option(parser, CONFIG_FILE)


def run(options: argparse.Namespace, state: StateFolder) -> int:
    from protocol.process.cli.checks import conduct
    from relay_agent.doctor.context import Context
    from relay_agent.doctor.steps import STEPS

    return conduct(STEPS, Context(state, options.config), options)
