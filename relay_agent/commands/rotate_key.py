"""`relay-agent rotate-key`: by the process that runs, which tells the relay at once; or for it."""

from __future__ import annotations

import argparse
from typing import Final

from protocol.process.cli.command import happens, hint
from protocol.process.control.client import SOCKET, ask
from protocol.process.state import StateFolder

# The agent attaches once more and the relay answers: what one attempt to attach may take.
ACCEPT_LIMIT: Final = 10.0


_DESCRIPTION: Final = """\
Give this agent a new key, from time to time or when the old one may be in wrong
hands. The old key vouches for it at the relay, and is revoked there in the same
moment. No session is cut.
"""
_EXAMPLES: Final = """\
examples:
  relay-agent rotate-key

Without a relay in reach the old key works until it is. Whoever holds a stolen
key can do the same; if that has happened, only a new invitation helps:
relay-server invite NAME.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES


def run(_: argparse.Namespace, state: StateFolder) -> None:
    from relay_agent.identity.agent_keys import load_agent_keys, rotate
    from relay_agent.identity.enrolment import LOCK, load_enrolment

    load_enrolment(state)  # raises what to do where there is none
    if not load_agent_keys(state).accepted:
        hint("the relay has not accepted the last new key yet, so it stays with that one")
    if ask(state.path / SOCKET, "rotate-key") is None:
        with state.lock(LOCK):
            rotate(state)
        hint("this agent has a new key; the relay hears of it once relay-agent runs")
        return
    if happens(lambda: load_agent_keys(state).accepted, within=ACCEPT_LIMIT):
        hint("this agent has a new key; the old one is worth nothing now")
    else:
        hint(
            "this agent has a new key, but the relay has not accepted it yet: it is away, or of"
            " an older version, or its log says why; the old key works until then"
        )
