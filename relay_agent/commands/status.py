"""`relay-agent status`: what the running agent says of itself."""

from __future__ import annotations

import argparse
import json
from typing import Final

from protocol.process.cli.command import CommandFailed, say
from protocol.process.cli.command_line import add_json_option
from protocol.process.cli.status_text import link_lines, stream_lines
from protocol.process.cli.text import Paint, span, wrapped
from protocol.process.state import StateFolder
from protocol.session.side import Side
from relay_agent.link.status import AgentStatus, ask_status
from relay_agent.services.service import ServiceStatus

_DESCRIPTION: Final = """\
Ask the agent that runs on this machine how its link, its ports and its
visitors are. If it does not run or has no link: relay-agent doctor.
"""
_EXAMPLES: Final = """\
examples:
  relay-agent status
  relay-agent status --json

"sent" and "received" are the visitor's. --json has ages in seconds.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    add_json_option(parser)


def run(options: argparse.Namespace, state: StateFolder) -> None:
    status = ask_status(state)
    if status is None:
        raise CommandFailed("the agent is not running; start it, or see: relay-agent doctor")
    say(json.dumps(status, indent=2) + "\n" if options.json else lay_out(status, Paint.of()))


def lay_out(status: AgentStatus, paint: Paint) -> str:
    name = f" as {status['name']}" if status["name"] else ""
    lines = [
        f"{paint('bold', 'agent')} {status['version']}, up {span(status['age'])}{name}",
        wrapped(f"relay {', '.join(status['relay'])}", "", "  "),
        *link_lines(status["attached"], status["link"], paint),
    ]
    if status["failure"]:
        lines.append(wrapped(f"cannot attach: {status['failure']}", "  ", "    "))
    services = status["services"]
    for one in services:
        state = _state(one, status["attached"], paint)
        lines.append(f"{one['service']} at {one['target']} on port {one['port']}  {state}")
        if one["state"] == "refused":
            lines.append(wrapped(one["reason"] or "", "    ", "    "))
        streams = [stream for stream in status["streams"] if stream["service"] == one["service"]]
        lines += [f"  {line}" for line in stream_lines(streams, side=Side.AGENT)]
    names = {one["service"] for one in services}
    rest = [stream for stream in status["streams"] if stream["service"] not in names]
    if rest:
        lines.append("of services that are not published any more")
        lines += [f"  {line}" for line in stream_lines(rest, side=Side.AGENT)]
    return "\n".join(lines) + "\n"


def _state(service: ServiceStatus, attached: bool, paint: Paint) -> str:
    match service["state"]:
        case "open":
            return paint("green", "open") if attached else paint("yellow", "open when last heard")
        case "refused":
            return paint("red", "refused")
    return paint("yellow", "not answered yet")
