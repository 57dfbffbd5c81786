"""`relay-server invitations`."""

from __future__ import annotations

import argparse
import time

from protocol.process.cli.command import hint, say, say_json
from protocol.process.cli.command_line import value_of
from protocol.process.cli.text import port_list, span, table
from protocol.process.names import parse_name
from protocol.process.state import StateFolder
from relay_server.registry.open import existing_registry


def add_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="for machines")
    what.add_argument(
        "--cancel",
        type=value_of(parse_name),
        metavar="NAME",
        help="make the pending invitation of NAME worthless",
    )


def run(options: argparse.Namespace, state: StateFolder) -> None:
    with existing_registry(state) as registry:
        if options.cancel is not None:
            registry.cancel(options.cancel)
            hint(f"the invitation for {options.cancel} is cancelled")
            return
        invitations = registry.invitations()
    now = time.time()
    if options.json:
        say_json(
            {
                "name": one.name,
                "ports": list(one.ports),
                "created": int(one.created),
                "expires": int(one.expires),
                "expired": one.expires <= now,
            }
            for one in invitations
        )
    elif invitations:
        rows = [
            (
                one.name,
                port_list(one.ports),
                "expired" if one.expires <= now else f"in {span(one.expires - now)}",
            )
            for one in invitations
        ]
        say(table(("NAME", "PORTS", "EXPIRES"), rows))
    else:
        hint("no invitation is pending")
