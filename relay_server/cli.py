"""`relay-server`: run the relay, invite agents, look after them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Final

from protocol import __version__
from protocol.process import logs
from protocol.process.cli.command import CommandFailed, add_common_options, run_command
from protocol.process.state import StateFolder, default_state_dir
from relay_server import PROGRAM
from relay_server.commands import (
    agents,
    doctor,
    export,
    import_relay,
    invitations,
    invite,
    move,
    reload,
    restrict,
    revoke,
    rotate_key,
    run,
    status,
    upgrade,
)
from relay_server.commands.options import Command, add_state_option
from relay_server.registry.registry import Refused

_EXAMPLES: Final = """\
from nothing to a login:
  on the VPS            relay-server run --host vps.example.net
                        relay-server invite home --port 11111
  on the router         relay-agent join relay1_...
                        relay-agent run
  from anywhere         ssh -p 11111 root@vps.example.net

"relay-server COMMAND --help" tells more about each command.
"""

# In the order in which --help lists them.
_COMMANDS: Final = (
    run,
    reload,
    invite,
    invitations,
    agents,
    status,
    doctor,
    restrict,
    rotate_key,
    revoke,
    export,
    import_relay,
    move,
    upgrade,
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logs.configure(options.log_level or "info", options.log_format or "text")
    return run_command(partial(_run, options), program=PROGRAM)


def _run(options: argparse.Namespace) -> int | None:
    state = StateFolder(options.state_dir or default_state_dir(PROGRAM))
    command: Command = options.command
    try:
        return command(options, state)
    except Refused as refused:
        raise CommandFailed(str(refused)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="The relay on the VPS: makes routers behind NAT reachable by plain ssh.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_common_options(parser, __version__)
    add_state_option(parser, default=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser
