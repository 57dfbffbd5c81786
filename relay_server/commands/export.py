"""`relay-server export`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from protocol.process.cli.command import CommandFailed, hint
from protocol.process.cli.text import counted
from protocol.process.config import ConfigError
from protocol.process.state import StateFolder
from relay_server.process.backup import pack
from relay_server.registry.open import existing_registry
from relay_server.registry.relay_keys import ROTATION_LOCK

_EXAMPLES: Final = """\
examples:
  relay-server export relay.backup
  relay-server export - | ssh root@new.example.net relay-server import -

The file has the relay's keys, the registry and the state folder's server.toml.
Whoever has it can be the relay, so keep it like a key. A relay that runs goes
on. See also "move".
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "file", metavar="FILE", help="a new file that only you will be able to read; - for a pipe"
    )


def run(options: argparse.Namespace, state: StateFolder) -> None:
    if options.file == "-" and sys.stdout.isatty():
        raise ConfigError("expected a file or a pipe: this has secrets that no terminal should")
    # Keys and registry of one moment: a rotation changes both.
    with existing_registry(state) as registry, state.lock(ROTATION_LOCK):
        data = pack(state, registry)
        count = len(registry.agents())
    try:
        if options.file == "-":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            _write(Path(options.file), data)
    except OSError as error:
        raise CommandFailed(f"{options.file}: {error.strerror}") from None
    hint(f"exported a relay with {counted(count, 'agent')}; keep it like a key")


def _write(file: Path, data: bytes) -> None:
    """Into a new file, or into none."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(file, flags, 0o600), "wb") as output:
        try:
            os.fchmod(output.fileno(), 0o600)
            output.write(data)
            output.flush()
            os.fsync(output.fileno())
        except BaseException:
            file.unlink()
            raise
