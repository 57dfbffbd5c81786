"""`relay-server run`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from protocol.process import logs
from protocol.process.cli.command_line import add_config_option, value_of
from protocol.process.state import StateFolder
from relay_server import CONFIG_FILE
from relay_server.config import (
    DEFAULT_PORT,
    ServerConfig,
    load_config,
    parse_bind,
    parse_listen,
)
from relay_server.options import add_host_option, at_most_eight
from relay_server.process.reload import remember
from relay_server.process.run import serve
from relay_server.registry.open import LOCK
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import load_or_make

_EXAMPLES: Final = """\
examples:
  relay-server run --host vps.example.net
  relay-server run --listen '[::]:7022' --listen '[::]:443' \\
                   --host vps.example.net --host vps.example.net:443

--host is remembered: give it at the first start and when it changes.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    add_config_option(parser, CONFIG_FILE)
    parser.add_argument(
        "--listen",
        action="append",
        default=[],
        type=value_of(parse_listen),
        metavar="ADDRESS:PORT",
        help=f"where agents dial in; repeatable (default: [::]:{DEFAULT_PORT}, IPv4 and IPv6)",
    )
    add_host_option(parser, "the name or address of this VPS as agents reach it, remembered;")
    parser.add_argument(
        "--bind",
        type=value_of(parse_bind),
        metavar="ADDRESS",
        help="the address public ports open on (default: all)",
    )


def run(options: argparse.Namespace, state: StateFolder) -> None:
    read = partial(_read, options, state)
    config = read()
    logs.configure(config.log_level, config.log_format)
    state.ensure()
    with state.lock(LOCK), Registry(state, migrate=True) as registry:
        keys = load_or_make(state, registry)
        remember(registry, config)
        trio.run(partial(serve, config, state, registry, keys, read=read))


def _read(options: argparse.Namespace, state: StateFolder) -> ServerConfig:
    """The file under the options, as of now. Raises ConfigError."""
    config = load_config(
        options.config,
        state.path,
        listen=options.listen,
        hosts=at_most_eight(options.host),
        bind=options.bind,
    )
    return replace(
        config,
        log_level=options.log_level or config.log_level,
        log_format=options.log_format or config.log_format,
    )
