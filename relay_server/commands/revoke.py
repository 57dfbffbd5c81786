"""`relay-server revoke`."""

from __future__ import annotations

import argparse
import time
from typing import Any

from protocol.process.cli.command import hint
from protocol.process.state import StateFolder
from relay_server.commands.options import add_command, reader
from relay_server.registry.open import existing_registry, refresh_server
from relay_server.registry.registry import parse_name


def add(commands: Any) -> None:
    parser = add_command(commands, "revoke", revoke_agent, "cut an agent off for good, at once")
    parser.add_argument("name", type=reader(parse_name), metavar="NAME", help="see `agents`")


def revoke_agent(options: argparse.Namespace, state: StateFolder) -> None:
    with existing_registry(state) as registry:
        registry.revoke(options.name, time.time())
    running = refresh_server(state, f"{options.name} is revoked, but may still be here")
    hint(f"{options.name} is revoked{' and cut off' if running else ''}")
