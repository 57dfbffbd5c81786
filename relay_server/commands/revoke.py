"""`relay-server revoke`."""

from __future__ import annotations

import argparse
import time

from protocol.process.cli.command import hint
from protocol.process.cli.command_line import value_of
from protocol.process.names import parse_name
from protocol.process.state import StateFolder
from relay_server.registry.open import existing_registry, refresh_server


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", type=value_of(parse_name), metavar="NAME", help="see `agents`")


def run(options: argparse.Namespace, state: StateFolder) -> None:
    with existing_registry(state) as registry:
        registry.revoke(options.name, time.time())
    running = refresh_server(state, f"{options.name} is revoked, but may still be here")
    hint(f"{options.name} is revoked{' and cut off' if running else ''}")
