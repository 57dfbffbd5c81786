"""`relay-server rotate-key`."""

from __future__ import annotations

import argparse
import time
from typing import Final

from protocol.process.cli.command import happens, hint
from protocol.process.state import StateFolder
from relay_server import PROGRAM
from relay_server.agents.status import ask_overview
from relay_server.registry.open import existing_registry, refresh_server
from relay_server.registry.registry import Refused, Registry
from relay_server.registry.relay_keys import (
    MAX_FORMER,
    ROTATION_LOCK,
    RelayKeys,
    load_or_make,
    retire,
    rotate,
)

# For agents that are here to come again under a new key: what one attempt to attach may take.
FOLLOW_LIMIT: Final = 10.0

_EXAMPLES: Final = """\
examples:
  relay-server rotate-key             from time to time, or when in doubt
  relay-server rotate-key --now       the old key may be in wrong hands
  relay-server rotate-key --retire    whoever has not followed by now stays away

Agents follow by themselves, at once or when they next dial in, and nothing is
cut: sessions go on. The old key answers until all of them know the new one and
the invitations that carry it are used or expired; "relay-server agents" tells
who is missing. --now and --retire end the old key: agents that have not
followed then, and invitations made before, need a new invitation.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--now",
        action="store_true",
        help="end the old key as soon as the agents that are here have followed, within"
        f" {FOLLOW_LIMIT:g} s",
    )
    how.add_argument(
        "--retire", action="store_true", help="make no new key, only end those before it"
    )


def run(options: argparse.Namespace, state: StateFolder) -> None:
    with existing_registry(state) as registry, state.lock(ROTATION_LOCK):
        keys = load_or_make(state, registry)
        if options.retire and not keys.former:
            raise Refused("there is no former key to end")
        if not options.retire:
            _rotate(state, registry, keys, even_at_the_bound=options.now)
        behind = registry.behind(keys.public)
        if options.now or options.retire:
            _retire(state, registry, keys)
            if behind:
                hint(f"not followed, so they need a new invitation: {', '.join(behind)}")
        elif behind:
            hint(f"not followed yet: {', '.join(behind)}; the old key answers until they have")


def _rotate(
    state: StateFolder, registry: Registry, keys: RelayKeys, *, even_at_the_bound: bool
) -> None:
    if len(keys.former) >= MAX_FORMER and not even_at_the_bound:
        raise Refused(
            f"{MAX_FORMER} former keys are in use still: see who has not followed with"
            f" {PROGRAM} agents, or end them with {PROGRAM} rotate-key --retire"
        )
    here = _here(state)
    rotate(state, keys)
    registry.remember_relay_key(keys.public)
    refresh_server(state, "the key is rotated, but not in use yet")
    hint("the relay has a new key")
    happens(lambda: not here.intersection(registry.behind(keys.public)), within=FOLLOW_LIMIT)


def _retire(state: StateFolder, registry: Registry, keys: RelayKeys) -> None:
    dead = registry.invited_behind(keys.public, time.time())
    for name in dead:
        registry.cancel(name)
    retire(state, keys)
    refresh_server(state, "the old key is removed, but may still be in use")
    hint("the old key is worth nothing now")
    if dead:
        hint(f"cancelled, since they carry the old key: invitations of {', '.join(dead)}")


def _here(state: StateFolder) -> set[str]:
    """The agents that are here and will follow at once."""
    answer = ask_overview(state)
    agents = answer["agents"] if answer is not None else []
    return {one["name"] for one in agents if one["following"]}
