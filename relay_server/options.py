"""Options that several commands of the relay take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from protocol.process.cli.command_line import value_of
from protocol.process.config import ConfigError
from protocol.wire.invitation import MAX_HOSTS
from relay_server.config import Host, parse_host
from relay_server.net.networks import Admission, Networks, parse_network


def add_host_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        type=value_of(parse_host),
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
            type=value_of(parse_network),
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
