"""`relay-agent reload`: what is in the files now, in the agent that runs."""

from __future__ import annotations

import argparse
from typing import Final

from protocol.process.cli.command import CommandFailed, hint, say
from protocol.process.control.client import SOCKET, ask
from protocol.process.state import StateFolder

_SAID: Final = {
    "added": "services added",
    "removed": "services removed",
    "changed": "services changed",
    "options": "options changed",
}


def command(_: argparse.Namespace, state: StateFolder) -> None:
    answer = ask(state.path / SOCKET, "reload")
    if answer is None:
        raise CommandFailed("the agent is not running; start it: relay-agent run")
    lines = [f"{said}: {', '.join(answer[key])}\n" for key, said in _SAID.items() if answer[key]]
    if not lines and not answer["restart"]:
        lines = ["nothing has changed\n"]
    say("".join(lines))
    if answer["restart"]:
        hint("another relay or another key of this agent: not before a restart")
