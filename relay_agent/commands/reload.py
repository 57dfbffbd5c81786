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


_DESCRIPTION: Final = """\
Have the agent that runs on this machine read its files again: agent.toml, what
`join` saved, and files of arguments. Streams go on, also those of a service
that is removed; another target is for visitors who come from then on. If
anything is wrong, nothing is changed. SIGHUP does the same, and tells the log.
"""
_EXAMPLES: Final = """\
example:
  relay-agent reload
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES


def run(_: argparse.Namespace, state: StateFolder) -> None:
    answer = ask(state.path / SOCKET, "reload")
    if answer is None:
        raise CommandFailed("the agent is not running; start it: relay-agent run")
    lines = [f"{said}: {', '.join(answer[key])}\n" for key, said in _SAID.items() if answer[key]]
    if not lines and not answer["restart"]:
        lines = ["nothing has changed\n"]
    say("".join(lines))
    if answer["restart"]:
        hint("another relay or another key of this agent: not before a restart")
