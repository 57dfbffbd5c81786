"""`relay-server run`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from protocol.process import logs
from protocol.process.state import StateFolder
from relay_server.commands.options import add_command, add_host_option, at_most_eight, reader
from relay_server.config import (
    DEFAULT_PORT,
    ServerConfig,
    load_config,
    parse_bind,
    parse_listen,
)
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


def add(commands: Any) -> None:
    parser = add_command(commands, "run", run_server, "run the relay until it is told to stop")
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with options (default: server.toml in the state folder, if there)",
    )
    parser.add_argument(
        "--listen",
        action="append",
        default=[],
        type=reader(parse_listen),
        metavar="ADDRESS:PORT",
        help=f"where agents dial in; repeatable (default: [::]:{DEFAULT_PORT}, IPv4 and IPv6)",
    )
    add_host_option(parser, "the name or address of this VPS as agents reach it, remembered;")
    parser.add_argument(
        "--bind",
        type=reader(parse_bind),
        metavar="ADDRESS",
        help="the address public ports open on (default: all)",
    )


def run_server(options: argparse.Namespace, state: StateFolder) -> None:
    read = partial(_read, options, state)
    config = read()
    logs.configure(config.log_level, config.log_format)
    # Only here: the other commands need none of it and are done sooner.
    from relay_server.process.reload import remember
    from relay_server.process.run import serve

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
