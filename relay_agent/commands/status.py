"""`relay-agent status`: what the running agent says of itself."""

from __future__ import annotations

import argparse
import json
from typing import Any

from protocol.process.ask import SOCKET, ask
from protocol.process.command import CommandFailed, say
from protocol.process.layout import Paint, span, wrapped
from protocol.process.links import link_lines, stream_lines
from protocol.process.state import StateFolder


def command(options: argparse.Namespace, state: StateFolder) -> None:
    status = ask(state.path / SOCKET, "status")
    if status is None:
        raise CommandFailed("the agent is not running; start it: relay-agent run")
    say(json.dumps(status, indent=2) + "\n" if options.json else lay_out(status, Paint.of()))


def lay_out(status: dict[str, Any], paint: Paint) -> str:
    name = f" as {status['name']}" if status["name"] else ""
    lines = [
        f"{paint('bold', 'agent')} {status['version']}, up {span(status['age'])}{name}",
        wrapped(f"relay {', '.join(status['relay'])}", "", "  "),
        *link_lines(status["attached"], status["link"], paint),
    ]
    if status["failure"]:
        lines.append(wrapped(f"cannot attach: {status['failure']}", "  ", "    "))
    for one in status["services"]:
        lines.append(
            f"{one['service']} at {one['target']} on port {one['port']}  {_state(one, paint)}"
        )
        if one["state"] == "refused":
            lines.append(wrapped(one["reason"], "    ", "    "))
        streams = stream_lines(status["streams"], one["service"], at_relay=False)
        lines += [f"  {line}" for line in streams]
    return "\n".join(lines) + "\n"


def _state(service: dict[str, Any], paint: Paint) -> str:
    match service["state"]:
        case "open":
            return paint("green", "open")
        case "refused":
            return paint("red", "refused")
    return paint("yellow", "not answered yet")
