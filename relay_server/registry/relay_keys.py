"""The relay's static keys: the one that agents should know it by, and those that some still do.

    relay.key        the current one
    former-ID.key    one that was rotated out; ID begins its public half

Every handshake is answered under whichever of them the agent knows. Over a link under a former key
the agent is told the current one, keeps it, and comes back under it; from then on it has followed.
A former key goes once nobody needs it: all agents have followed, and the invitations that carry it
are used or expired. So it takes no clock, and whoever was away all the time can still follow.

A former key is saved before `relay.key` is replaced: at no moment is a key that agents know lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from protocol.process.state import StateError, StateFolder
from protocol.wire.identifiers import RelayKey
from protocol.wire.noise import StaticKey
from relay_server.registry.registry import REGISTRY_FILE

if TYPE_CHECKING:
    from relay_server.registry.registry import Registry

KEY: Final = "relay.key"
FORMER: Final = "former-*.key"
# Held by whichever process changes the keys: of two rotations at once, one would lose its key.
ROTATION_LOCK: Final = "rotate.lock"
# Each costs us another exchange (50 µs) for whatever a stranger sends.
MAX_FORMER: Final = 3


@dataclass(slots=True)
class RelayKeys:
    """What is in the state folder, as of the last look."""

    current: StaticKey
    former: Sequence[StaticKey] = ()

    @property
    def all(self) -> tuple[StaticKey, ...]:
        return (self.current, *self.former)

    @property
    def public(self) -> RelayKey:
        """The public half of the current key."""
        return RelayKey(self.current.public)

    def successor(self, known: RelayKey) -> RelayKey | None:
        """What to tell an agent that knows the relay by `known`."""
        return None if known == self.public else self.public

    def look_again(self, state: StateFolder) -> bool:
        """Whether the current key is another one now. Raises StateError."""
        before, current = self.public, _existing(state)
        # Both or neither: a current key without those before it would turn agents away.
        self.former = _former(state, current)
        self.current = current
        return current.public != before


def load_or_make(state: StateFolder, registry: Registry) -> RelayKeys:
    """The keys that agents know this relay by, with one made if nobody knows one yet."""
    if state.read_secret(KEY) is None:
        if registry.agents() or registry.invitations():
            raise StateError(
                f"{state.path / KEY}: missing; agents know this relay by this key: put it back, or"
                f" move {REGISTRY_FILE} away as well and invite every agent again"
            )
        # Another process may do the same at this moment; the first key stays.
        _save(state, KEY, StaticKey.generate(), replace=False)
    return load(state)


def load(state: StateFolder) -> RelayKeys:
    """Those that are there. Raises StateError, also if there is none."""
    current = _existing(state)
    return RelayKeys(current, _former(state, current))


def has_former(state: StateFolder) -> bool:
    return any(state.path.glob(FORMER))


def rotate(state: StateFolder, keys: RelayKeys) -> None:
    """Make a new current key; the old one becomes a former one. One process at a time."""
    _save(state, _former_name(keys.current), keys.current)
    new = StaticKey.generate()
    _save(state, KEY, new)
    keys.current, keys.former = new, (keys.current, *keys.former)


def retire(state: StateFolder, keys: RelayKeys) -> None:
    """End the former keys: whoever knows no other cannot come any more."""
    for key in keys.former:
        state.remove(_former_name(key))
    keys.former = ()


def retire_unneeded(state: StateFolder, keys: RelayKeys, registry: Registry, now: float) -> bool:
    """Whether there were former keys, and nobody needed them any more."""
    current = keys.public
    if not keys.former or registry.behind(current) or registry.invited_behind(current, now):
        return False
    retire(state, keys)
    return True


def _existing(state: StateFolder) -> StaticKey:
    return _parse(state, KEY, state.read_secret(KEY) or "")


def _former(state: StateFolder, current: StaticKey) -> tuple[StaticKey, ...]:
    names = sorted(path.name for path in state.path.glob(FORMER))
    texts = [(name, state.read_secret(name)) for name in names]
    former = [_parse(state, name, text) for name, text in texts if text is not None]
    # The current one is among them if the power failed between the two steps of `rotate`.
    return tuple(key for key in former if key.public != current.public)


def _former_name(key: StaticKey) -> str:
    return FORMER.replace("*", key.public.hex()[:16])


def _save(state: StateFolder, name: str, key: StaticKey, *, replace: bool = True) -> None:
    state.write_secret(name, key.private.hex() + "\n", replace=replace)


def _parse(state: StateFolder, name: str, text: str) -> StaticKey:
    try:
        return StaticKey.from_private(bytes.fromhex(text))
    except ValueError:
        # Without the text, which may be most of a secret.
        file = state.path / name
        raise StateError(f"{file}: expected a private key of 64 hexadecimal digits") from None
