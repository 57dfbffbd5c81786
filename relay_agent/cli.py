"""The command line of `relay-agent`.

What a command needs is imported when it runs: `--help` and a mistyped option answer at once, also
on a router where importing everything takes seconds.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from protocol import __version__
from protocol.process.cli.command import (
    CommandFailed,
    add_common_options,
    add_log_options,
    run_command,
)
from protocol.process.config import ConfigError
from protocol.process.state import StateFolder, default_state_dir
from relay_agent import PROGRAM

# What does not come in one piece with us on a router, but from OpenWrt's feed.
LIBRARIES: Final = frozenset({"cryptography", "msgpack"})

_DESCRIPTION: Final = """\
Make this machine's SSH server reachable through a relay, from behind NAT.

  1. on the relay:   relay-server invite home
  2. on this machine: relay-agent join, and paste the line that was printed
  3. on this machine: relay-agent run, and leave it running
"""
_JOIN: Final = """\
Enrol at the relay that the invitation comes from, try the whole way from the
public port to the SSH server of this machine, and save what `run` needs.
After a failure, run it again with the same invitation.
"""
_JOIN_EXAMPLES: Final = """\
examples:
  relay-agent join
  relay-agent join relay1_...
  relay-agent join --service ssh=192.168.1.1:22
  relay-agent join --service ssh=127.0.0.1:22@11111 --service web=[::1]:80@11112
"""
_RUN: Final = """\
Stay attached to the relay and publish this machine's services, until SIGTERM
or Ctrl-C. SIGUSR1 says that the network may have changed, SIGHUP that files
have: see "relay-agent reload". An argument @FILE stands for those in FILE, one
a line.
"""
_RUN_EXAMPLES: Final = """\
examples:
  relay-agent run
  relay-agent run --log-level debug --log-format json

Options of your own go into agent.toml in the state folder.
"""
_RELOAD: Final = """\
Have the agent that runs on this machine read its files again: agent.toml, what
`join` saved, and files of arguments. Streams go on, also those of a service
that is removed; another target is for visitors who come from then on. If
anything is wrong, nothing is changed. SIGHUP does the same, and tells the log.
"""
_RELOAD_EXAMPLES: Final = """\
example:
  relay-agent reload
"""
_STATUS: Final = """\
Ask the agent that runs on this machine how its link, its ports and its
visitors are. If it does not run or has no link: relay-agent doctor.
"""
_STATUS_EXAMPLES: Final = """\
examples:
  relay-agent status
  relay-agent status --json

"sent" and "received" are the visitor's. --json has ages in seconds.
"""
_DOCTOR: Final = """\
Go the whole way from this machine to a visitor, step by step, and say of each
what was found and what to do. Beside a running agent it disturbs nothing.
The exit status is 0 if no step failed; a note is no failure.
"""
_DOCTOR_EXAMPLES: Final = """\
examples:
  relay-agent doctor
  relay-agent doctor --json

What its findings mean, with examples: docs/troubleshooting.md
"""
_ROTATE: Final = """\
Give this agent a new key, from time to time or when the old one may be in wrong
hands. The old key vouches for it at the relay, and is revoked there in the same
moment. No session is cut.
"""
_ROTATE_EXAMPLES: Final = """\
examples:
  relay-agent rotate-key

Without a relay in reach the old key works until it is. Whoever holds a stolen
key can do the same; if that has happened, only a new invitation helps:
relay-server invite NAME.
"""


def command_line(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` name and return its exit status."""
    options = _parser().parse_args(arguments)
    options.again = partial(_parse_again, arguments)
    return run_command(partial(_run, options), program=PROGRAM)


class _Raising(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parse_again(arguments: Sequence[str]) -> argparse.Namespace:
    """With what is in files of arguments now. Raises ConfigError instead of ending the process."""
    return _parser(_Raising).parse_args(arguments)


def _run(options: argparse.Namespace) -> int | None:
    state = StateFolder(options.state_dir or default_state_dir(PROGRAM))
    module_name = options.command.replace("-", "_")
    try:
        module = importlib.import_module(f"relay_agent.commands.{module_name}")
        status: int | None = module.command(options, state)
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


def _parser(
    kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    parser = kind(
        prog=PROGRAM,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # else a new option would change what old scripts mean
    )
    add_common_options(parser, __version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    join = _add_command(commands, "join", "enrol with an invitation", _JOIN, _JOIN_EXAMPLES)
    join.add_argument(
        "invitation",
        nargs="?",
        metavar="INVITATION",
        help="the line that relay-server invite printed; asked for, or read from standard"
        " input, if left out",
    )
    _add_service_option(
        join,
        "default: ssh, the SSH server found on this machine, on the first port of the invitation",
    )
    run = _add_command(commands, "run", "stay attached and serve", _RUN, _RUN_EXAMPLES)
    run.fromfile_prefix_chars = "@"
    _add_service_option(run, "default: those of agent.toml, or else of join")
    reload = _add_command(
        commands,
        "reload",
        "put changed options and services into effect",
        _RELOAD,
        _RELOAD_EXAMPLES,
    )
    status = _add_command(
        commands, "status", "show link, ports and visitors as of now", _STATUS, _STATUS_EXAMPLES
    )
    status.add_argument("--json", action="store_true", help="for machines")
    doctor = _add_command(
        commands, "doctor", "find out why it does not work", _DOCTOR, _DOCTOR_EXAMPLES
    )
    doctor.add_argument("--json", action="store_true", help="for machines")
    for command in (run, doctor):
        command.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="options of your own, in TOML (default: agent.toml in the state folder, if any)",
        )
    rotate = _add_command(
        commands, "rotate-key", "give this agent a new key", _ROTATE, _ROTATE_EXAMPLES
    )
    _add_state_option(parser, default=None)
    for command in (join, run, reload, status, doctor, rotate):
        _add_state_option(command, default=argparse.SUPPRESS)
        add_log_options(command)
    return parser


def _add_service_option(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--service",
        action="append",
        default=[],
        metavar="NAME=HOST:PORT[@PUBLIC_PORT]",
        help=f"what to publish, and on which port of the relay; repeatable ({default})",
    )


def _add_state_option(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """Before the command or after it, as the log options."""
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=default,
        metavar="DIR",
        help="where the key and the enrolment are (default: /etc/relay-agent as root, else"
        " relay-agent in the XDG state folder)",
    )


def _add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
