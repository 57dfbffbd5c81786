"""`relay-server reload`."""

from __future__ import annotations

import argparse
from typing import Final

from protocol.process.cli.command import CommandFailed, hint, say
from protocol.process.state import StateFolder
from relay_server.agents.status import ask_to_reload

_NOTES: Final = """\
Streams go on, ports stay open. If anything in the file is wrong, nothing is
changed and the relay goes on as it was. What holds for visitors holds for
those who come from then on; windows and budgets hold for sessions that begin.
"listen", "bind" and "metrics" need a restart. SIGHUP does the same, and tells
the log.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _NOTES


def run(options: argparse.Namespace, state: StateFolder) -> None:
    answer = ask_to_reload(state)
    if answer is None:
        raise CommandFailed("the relay is not running; it reads its configuration when it starts")
    changed, restart = answer["changed"], answer["restart"]
    if changed:
        say(f"changed: {', '.join(changed)}\n")
    elif not restart:
        say("nothing has changed\n")
    if restart:
        hint(f"not before a restart: {', '.join(restart)}")
