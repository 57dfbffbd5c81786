"""`relay-agent`: join a relay, and publish this machine's services through it.

Routers take seconds to import what some of the commands need, so what is imported here, and at the
top of a command's module, is what --help and a mistyped option need.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Final

from protocol.process.cli.command import CommandFailed, run_command
from protocol.process.cli.command_line import Command, CommandLine
from relay_agent import PROGRAM

# On a router these are not part of the package, but come from OpenWrt's feed.
LIBRARIES: Final = frozenset({"cryptography", "msgpack"})

_DESCRIPTION: Final = """\
Make this machine's SSH server reachable through a relay, from behind NAT.

  1. on the relay:   relay-server invite home
  2. on this machine: relay-agent join, and paste the line that was printed
  3. on this machine: relay-agent run, and leave it running
"""

# In the order in which --help lists them.
_COMMANDS: Final = (
    Command("join", "relay_agent.commands.join", "enrol with an invitation"),
    Command("run", "relay_agent.commands.run", "stay attached and serve"),
    Command(
        "reload", "relay_agent.commands.reload", "put changed options and services into effect"
    ),
    Command("status", "relay_agent.commands.status", "show link, ports and visitors as of now"),
    Command("doctor", "relay_agent.commands.doctor", "find out why it does not work"),
    Command("rotate-key", "relay_agent.commands.rotate_key", "give this agent a new key"),
)

COMMAND_LINE: Final = CommandLine(
    program=PROGRAM,
    description=_DESCRIPTION,
    state_folder="where the key and the enrolment are (default: /etc/relay-agent as root, else"
    " relay-agent in the XDG state folder)",
    commands=_COMMANDS,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name, by default this process's; return the exit status."""
    options = COMMAND_LINE.parse(arguments)
    options.again = partial(COMMAND_LINE.parse_again, arguments)
    return run_command(partial(_run, options), program=PROGRAM)


def _run(options: argparse.Namespace) -> int | None:
    try:
        status: int | None = options.run(options, COMMAND_LINE.state_of(options))
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in LIBRARIES:
            raise
        raise CommandFailed(
            f"the Python library {library} is missing; install python3-{library} with opkg or apk,"
            f" or {library} with pip (OpenWrt 25.12 has no python3-cryptography for 32-bit"
            " routers: there 24.10 is what works)"
        ) from None
    return status
