"""`relay-server doctor`: what `relay_server.doctor.steps` found, as it finds it."""

from __future__ import annotations

import argparse
from typing import Final

from protocol.process.cli.checks import conduct
from protocol.process.cli.command_line import add_config_option, add_json_option
from protocol.process.state import StateFolder
from relay_server import CONFIG_FILE
from relay_server.doctor.context import Context
from relay_server.doctor.steps import STEPS

_EXAMPLES: Final = """\
examples:
  sudo relay-server doctor        root may read the firewall's rules, too
  relay-server doctor --json | jq '.[] | select(.verdict == "failed")'

Nothing is changed, and a running relay is not disturbed. The exit status is 0
if no step failed. Whether agents and visitors get here from elsewhere is seen
from there: run relay-agent doctor on the router.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    add_json_option(parser)
    add_config_option(parser, CONFIG_FILE)


def run(options: argparse.Namespace, state: StateFolder) -> int:
    return conduct(STEPS, Context(state, options.config), options)
