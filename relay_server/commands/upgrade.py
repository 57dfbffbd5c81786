"""`relay-server upgrade`: the process that runs becomes the version that is installed now."""

from __future__ import annotations

import argparse
import time
from typing import Final

from protocol.process.cli.command import CommandFailed, happens, say
from protocol.process.cli.text import counted
from protocol.process.control.client import SOCKET, ask
from protocol.process.state import StateFolder
from relay_server import PROGRAM
from relay_server.agents.status import RelayStatus, ask_status

_ABOUT: Final = """\
Listening sockets, visitors and sessions go on under the same process id;
agents are back within a second or two, and logins notice nothing but that.
What stays as it was is the command line, and what systemd's unit sets:
after a change of the unit, use systemctl restart, which keeps logins too.
"""

# It tries the new version first, then starts it: a second each on a VPS, unless it is very busy.
UPGRADE_LIMIT: Final = 60.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _ABOUT


def run(options: argparse.Namespace, state: StateFolder) -> None:
    # This process is of the version that is to take over.
    import relay_server.process.run  # noqa: F401 - whether it loads

    asked = time.monotonic()
    if ask(state.path / SOCKET, "upgrade") is None:
        raise CommandFailed("the relay is not running")
    status: RelayStatus | None = None

    def is_another() -> bool:
        nonlocal status
        try:
            status = ask_status(state)
        except CommandFailed:  # between the two
            return False
        return status is not None and status["age"] < time.monotonic() - asked

    if not happens(is_another, within=UPGRADE_LIMIT) or status is None:
        raise CommandFailed("the relay goes on as it was; its log says why")
    visitors = sum(len(one["streams"]) for one in status["agents"])
    say(f"{PROGRAM} {status['version']} goes on, with {counted(visitors, 'visitor')}\n")
