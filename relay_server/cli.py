"""`relay-server`: run the relay, invite agents, look after them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Final

from protocol.process import logs
from protocol.process.cli.command import CommandFailed, run_command
from protocol.process.cli.command_line import Command, CommandLine
from relay_server import PROGRAM
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
    Command("run", "relay_server.commands.run", "run the relay until it is told to stop"),
    Command(
        "reload",
        "relay_server.commands.reload",
        "have the running relay read its configuration again",
    ),
    Command("invite", "relay_server.commands.invite", "print an invitation for a router"),
    Command("invitations", "relay_server.commands.invitations", "list or cancel invitations"),
    Command("agents", "relay_server.commands.agents", "list the agents that are enrolled"),
    Command("status", "relay_server.commands.status", "show links, ports and visitors as of now"),
    Command(
        "doctor",
        "relay_server.commands.doctor",
        "examine what the relay stands on, and say what to do",
    ),
    Command(
        "restrict",
        "relay_server.commands.restrict",
        "say from where an agent's ports may be visited",
    ),
    Command("rotate-key", "relay_server.commands.rotate_key", "give the relay a new key"),
    Command("revoke", "relay_server.commands.revoke", "cut an agent off for good, at once"),
    Command(
        "export", "relay_server.commands.export", "write all that makes this relay into one file"
    ),
    Command(
        "import",
        "relay_server.commands.import_relay",
        "become the relay that `export` wrote into a file",
    ),
    Command(
        "move",
        "relay_server.commands.move",
        "tell agents where else they are to look for the relay",
    ),
    Command("upgrade", "relay_server.commands.upgrade", "let the installed version take over"),
)

COMMAND_LINE: Final = CommandLine(
    program=PROGRAM,
    description="The relay on the VPS: makes routers behind NAT reachable by plain ssh.",
    epilog=_EXAMPLES,
    state_folder="where keys and registry are (default: /var/lib/relay-server as root,"
    " else ~/.local/state/relay-server)",
    commands=_COMMANDS,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name, by default this process's; return the exit status."""
    options = COMMAND_LINE.parse(arguments)
    logs.configure(options.log_level or "info", options.log_format or "text")
    return run_command(partial(_run, options), program=PROGRAM)


def _run(options: argparse.Namespace) -> int | None:
    try:
        status: int | None = options.run(options, COMMAND_LINE.state_of(options))
    except Refused as refused:
        raise CommandFailed(str(refused)) from None
    return status
