"""Options that several commands take, and how each command is added."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from protocol.process.cli.command import add_log_options
from protocol.process.config import ConfigError
from protocol.process.state import StateFolder
from protocol.wire.invitation import MAX_HOSTS
from relay_server.config import Host, parse_host
from relay_server.net.networks import Admission, Networks, parse_network

_T = TypeVar("_T")

Command: TypeAlias = Callable[[argparse.Namespace, StateFolder], int | None]


def add_command(
    commands: Any,  # argparse keeps the type to itself
    name: str,
    function: Command,
    summary: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=function)
    add_state_option(parser, default=argparse.SUPPRESS)
    add_log_options(parser)
    return parser


def add_state_option(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """Before the command or after it, as the log options."""
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=default,
        metavar="DIR",
        help="where keys and registry are (default: /var/lib/relay-server as root,"
        " else ~/.local/state/relay-server)",
    )


def add_host_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        type=reader(parse_host),
        metavar="NAME[:PORT]",
        help=f"{what} repeatable, agents try them in this order",
    )


def add_network_options(parser: argparse.ArgumentParser) -> None:
    for option, what in (
        ("--allow", "only visitors from this network (or address) may come"),
        ("--deny", "visitors from this network (or address) may not come, allowed or not"),
    ):
        parser.add_argument(
            option,
            action="append",
            default=[],
            type=reader(parse_network),
            metavar="CIDR",
            help=f"{what}; repeatable",
        )


def admission_of(options: argparse.Namespace) -> Admission | None:
    """What `add_network_options` were given; None if nothing."""
    if not options.allow and not options.deny:
        return None
    return Admission(allow=Networks(options.allow), deny=Networks(options.deny))


def at_most_eight(hosts: Sequence[Host], what: str = "--host") -> Sequence[Host]:
    if len(hosts) > MAX_HOSTS:
        raise ConfigError(f"{what}: expected at most {MAX_HOSTS} hosts, not {len(hosts)}")
    return hosts


def reader(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Give argparse the parser's own words about what is expected."""

    def read(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError(f"expected a port from 1 to 65535, not {text!r}")
    return int(text)


def ports_in_words(ports: Sequence[int]) -> str:
    return f"port{'s'[: len(ports) > 1]} {', '.join(map(str, ports))}"


def port_list(ports: Sequence[int]) -> str:
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]} +{len(ports) - 1}"
