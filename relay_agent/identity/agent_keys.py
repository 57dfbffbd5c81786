"""The keys that prove this agent, and their files, while it goes from one key to the next.

    agent.key     the newest one, and the digest of the invitation that it came from
    former.key    the one before, by which key it was replaced, whether the relay accepted that,
                  and the keys before, newest first

                      ┌────────────── rotate ──────────────┐
                      ▼                                    │
    rotate ──▶ not accepted: the former key works, and ──▶ accepted: the newest works; or else one
               vouches for the newest; or else the         of the former vouches for it once more
               newest works, and the answer got lost

No key is given up for its successor, so there is always one that the relay takes: whether it has
heard of the newest, lost its answer, or was put back to a state from before, also if the agent
rotates once more before it finds out. All are saved before the relay hears of the newest. If the
power fails between the two files, `former.key` begins with the key that is still the newest, and
the keys after it are the former ones.

A former key is worth something only to a relay that does not know the newest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from protocol.process.state import StateFolder
from protocol.wire.identifiers import AgentKey
from protocol.wire.noise import StaticKey
from relay_agent.identity.enrolment import FORMER_FILE, KEY_FILE, load_key, parse_key

# A relay put back by as many rotations still knows one of the keys. Keys are rotated every few
# months, so a backup from before that is older than any that is of use; and each further key costs
# an agent that the relay refuses another handshake an attempt.
MAX_FORMER: Final = 3
_ACCEPTED: Final = "accepted"


@dataclass(frozen=True, slots=True)
class AgentKeys:
    """`former` has the newest first; `accepted`: the relay has once taken `newest`."""

    newest: StaticKey
    former: tuple[StaticKey, ...] = ()
    accepted: bool = True

    @property
    def public(self) -> AgentKey:
        """The public half of the newest key."""
        return AgentKey(self.newest.public)

    def in_order(self) -> tuple[StaticKey, ...]:
        """All of them, beginning with the one that the relay most likely takes."""
        if self.accepted:
            return (self.newest, *self.former)
        return (*self.former[:1], self.newest, *self.former[1:])


def load_agent_keys(state: StateFolder) -> AgentKeys:
    """The keys of the saved enrolment. Raises ConfigError, StateError."""
    newest = load_key(state)
    text = state.read_secret(FORMER_FILE) or ""
    replaced, replaced_by, *more = [*text.split(), "", ""]
    accepted = _ACCEPTED in more
    older = [word for word in more if word not in (_ACCEPTED, "")]
    if replaced_by == newest.public.hex():
        former = [replaced, *older]
    elif replaced == newest.private.hex():  # `rotate` was interrupted between the two files
        former, accepted = older, True
    else:  # of another enrolment
        former, accepted = [], True
    keys = [parse_key(state, FORMER_FILE, word) for word in former[:MAX_FORMER]]
    return AgentKeys(newest, tuple(keys), accepted)


def rotate(state: StateFolder) -> AgentKeys:
    """Make a new key, unless the relay has not accepted the last one yet.

    Without that condition, rotations while the relay is away would push out the key that it knows.
    Only one process at a time may do this.
    """
    own = load_agent_keys(state)
    if not own.accepted:
        return own
    _, *digest = (state.read_secret(KEY_FILE) or "").split()
    new = AgentKeys(StaticKey.generate(), (own.newest, *own.former), accepted=False)
    # With all of them: if this is interrupted, the first is no former key, and the last still one.
    _save_former(state, new)
    state.write_secret(KEY_FILE, "\n".join([new.newest.private.hex(), *digest]) + "\n")
    return replace(new, former=new.former[:MAX_FORMER])


def save_accepted(state: StateFolder, own: AgentKeys) -> None:
    """Raises StateError."""
    _save_former(state, own)


def _save_former(state: StateFolder, own: AgentKeys) -> None:
    if not own.former:
        return
    replaced, *older = [key.private.hex() for key in own.former]
    accepted = [_ACCEPTED] if own.accepted else []
    lines = [replaced, own.newest.public.hex(), *accepted, *older]
    state.write_secret(FORMER_FILE, "\n".join(lines) + "\n")
