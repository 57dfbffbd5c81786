"""`relay-server import`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from protocol.process.cli.command import CommandFailed, hint
from protocol.process.cli.text import counted
from protocol.process.config import ConfigError
from protocol.process.state import StateError, StateFolder
from relay_server import PROGRAM
from relay_server.config import load_config
from relay_server.process.backup import MAX_SIZE, is_unknown, put, unpack
from relay_server.registry.open import LOCK
from relay_server.registry.registry import Registry

_EXAMPLES: Final = """\
examples:
  relay-server import relay.backup
  ssh root@old.example.net relay-server export - | relay-server import -

The relay must not be running here, and the state folder be empty or that of a
relay that nobody knows yet. A server.toml that is there stays. Stop the relay
that was exported before you start this one: agents know both as one.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument("file", metavar="FILE", help="what export wrote; - for a pipe")


def run(options: argparse.Namespace, state: StateFolder) -> None:
    try:
        files = unpack(_read(options.file))
    except ConfigError as error:
        raise ConfigError(f"{options.file}: {error}") from None
    state.ensure()
    with state.lock(LOCK):
        if not is_unknown(state):
            raise StateError(
                f"{state.path}: there is a relay here that agents know; move the folder away, or"
                " name another one by --state-dir"
            )
        put(state, files)
        with Registry(state, migrate=True) as registry:
            moved_to = registry.announced()
            if moved_to:
                registry.remember_hosts(moved_to)
            hosts = registry.hosts()
            agents = len(registry.agents())
    hint(f"imported a relay with {counted(agents, 'agent')}")
    named = load_config(None, state.path).dialled or hosts
    if named:
        hint(f"invitations will name {', '.join(map(str, named))}; others: {PROGRAM} run --host")


def _read(file: str) -> bytes:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(MAX_SIZE + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(MAX_SIZE + 1)
    except OSError as error:
        raise CommandFailed(f"{file}: {error.strerror}") from None
    if len(data) > MAX_SIZE:
        raise CommandFailed(f"{file}: no export of a relay: more than {MAX_SIZE >> 20} MiB")
    return data
