"""The keys that prove this agent, and their files, while it goes from one key to the next.

    agent.key     the newest one, and the digest of the invitation that it came from
    former.key    the one before, by which key it was replaced, and whether the relay accepted that

                      ┌────────────── rotate ──────────────┐
                      ▼                                    │
    rotate ──▶ not accepted: the former key works, and ──▶ accepted: the newest works; or else the
               vouches for the newest; or else the         former vouches for it once more
               newest works, and the answer got lost

Neither key is given up for the other, so there is always one that the relay takes: whether it has
heard of the newest, lost its answer, or was put back to a state from before. Both are saved before
the relay hears of the newest. If the power fails between the two files then `former.key` speaks of
a key that is nowhere, and counts for nothing.

The former key is worth something only to a relay that does not know the newest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocol.process.state import StateFolder
from protocol.wire.noise import StaticKey
from relay_agent.identity.enrolment import FORMER_FILE, KEY_FILE, load_key, parse_key

_ACCEPTED: Final = "accepted"


@dataclass(frozen=True, slots=True)
class AgentKeys:
    """`accepted`: the relay has once taken the newest."""

    newest: StaticKey
    former: StaticKey | None = None
    accepted: bool = True


def load_agent_keys(state: StateFolder) -> AgentKeys:
    """The keys of the saved enrolment. Raises ConfigError, StateError."""
    newest = load_key(state)
    text = state.read_secret(FORMER_FILE) or ""
    _, replaced_by, *more = [*text.split(), "", ""]
    if replaced_by != newest.public.hex():
        return AgentKeys(newest)
    former = parse_key(state, FORMER_FILE, text)
    return AgentKeys(newest, former, accepted=_ACCEPTED in more)


def rotate(state: StateFolder) -> AgentKeys:
    """Make a new key, unless the relay has not accepted the last one yet.

    Else there could be two steps between what it knows and what we have. One process at a time.
    """
    own = load_agent_keys(state)
    if not own.accepted:
        return own
    _, *digest = (state.read_secret(KEY_FILE) or "").split()
    new = AgentKeys(StaticKey.generate(), own.newest, accepted=False)
    _save_former(state, new)
    state.write_secret(KEY_FILE, "\n".join([new.newest.private.hex(), *digest]) + "\n")
    return new


def save_accepted(state: StateFolder, own: AgentKeys) -> None:
    """Raises StateError."""
    _save_former(state, own)


def _save_former(state: StateFolder, own: AgentKeys) -> None:
    if own.former is not None:
        lines = [own.former.private.hex(), own.newest.public.hex()]
        lines += [_ACCEPTED] if own.accepted else []
        state.write_secret(FORMER_FILE, "\n".join(lines) + "\n")
