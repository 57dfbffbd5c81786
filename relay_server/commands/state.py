"""What is in the state folder beside the configuration: the registry and the relay's key."""

from __future__ import annotations

from typing import Final

from protocol.noise import StaticKey
from protocol.process.ask import SOCKET, ask
from protocol.process.command import CommandFailed
from protocol.process.state import StateError, StateFolder
from relay_server.commands.options import PROGRAM
from relay_server.registry import FILE as REGISTRY
from relay_server.registry import Registry

KEY: Final = "relay.key"
LOCK: Final = "run.lock"


def existing_registry(state: StateFolder) -> Registry:
    """The registry, without making one where there was none."""
    if not (state.path / REGISTRY).exists():
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


def relay_key(state: StateFolder, registry: Registry) -> StaticKey:
    """The key that agents know this relay by, made if nobody knows one yet."""
    file = state.path / KEY
    text = state.read_secret(KEY)
    if text is None:
        if registry.agents() or registry.invitations():
            raise StateError(
                f"{file}: missing; agents know this relay by this key: put it back, or move"
                f" {REGISTRY} away as well and invite every agent again"
            )
        # Another process may do the same at this moment; the first key stays.
        state.write_secret(KEY, StaticKey.generate().private.hex() + "\n", replace=False)
        text = state.read_secret(KEY) or ""
    try:
        return StaticKey.from_private(bytes.fromhex(text))
    except ValueError:
        # Without the text, which may be most of a secret.
        raise StateError(f"{file}: expected a private key of 64 hexadecimal digits") from None
