"""What is in the state folder beside the configuration and the relay's keys: the registry."""

from __future__ import annotations

import contextlib
from typing import Final

from protocol.process.cli.command import CommandFailed
from protocol.process.control.client import SOCKET, ask
from protocol.process.state import StateError, StateFolder
from relay_server import PROGRAM
from relay_server.registry.registry import REGISTRY_FILE, Registry

LOCK: Final = "run.lock"


def existing_registry(state: StateFolder) -> Registry:
    """The registry, without making one where there was none."""
    # Who may not even look is told so below.
    with contextlib.suppress(PermissionError):
        if not (state.path / REGISTRY_FILE).exists():
            raise StateError(
                f"{state.path}: no relay has its state here; {PROGRAM} run makes it,"
                " --state-dir names another folder"
            )
    state.ensure()
    return Registry(state)


def refresh_server(state: StateFolder, unless: str) -> bool:
    """Tell the running server that the registry changed; whether there is one.

    `unless` is said when it does not answer.
    """
    try:
        return ask(state.path / SOCKET, "refresh") is not None
    except CommandFailed as failed:
        raise CommandFailed(f"{unless}: {failed}") from None
