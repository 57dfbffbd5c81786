"""`relay-server status`: what lives now. `agents` lists who is enrolled."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from typing import Final

from protocol.process.cli.command import CommandFailed, say
from protocol.process.cli.command_line import add_json_option, value_of
from protocol.process.cli.status_text import link_lines, service_name, stream_lines
from protocol.process.cli.text import Paint, counted, span, wrapped
from protocol.process.names import parse_name
from protocol.process.state import StateFolder
from protocol.session.side import Side
from relay_server import PROGRAM
from relay_server.agents.reasons import sentence_of
from relay_server.agents.status import AgentStatus, RelayStatus, ServiceStatus, ask_status
from relay_server.registry.open import existing_registry

# As often as a person can read it; an answer costs the relay about a millisecond.
_WATCH_SECONDS: Final = 1.0
# All of the screen, once; then home, line by line, and what the last picture left below this one.
_CLEAR, _HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[2J", "\x1b[H", "\x1b[K\n", "\x1b[J"

_EXAMPLES: Final = """\
examples:
  relay-server status
  relay-server status home
  relay-server status --watch
  relay-server status --json | jq '.agents[].streams[].source'

"sent" and "received" are the visitor's; "refused" counts since the relay
started. --json has ages in seconds, and all streams; with --watch, one
document a line.
"""


class ShownStatus(RelayStatus):
    absent: list[str]  # enrolled agents that did not attach since the relay started


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "name",
        nargs="?",
        type=value_of(parse_name),
        metavar="NAME",
        help="of one agent (default: all)",
    )
    add_json_option(parser)
    parser.add_argument("--watch", action="store_true", help="again each second, until Ctrl-C")


def run(options: argparse.Namespace, state: StateFolder) -> None:
    paint = Paint.of()
    if options.watch:
        _watch(options, state, paint)
    else:
        status = _status(state, options.name)
        say(json.dumps(status, indent=2) + "\n" if options.json else lay_out(status, paint))


def _watch(options: argparse.Namespace, state: StateFolder, paint: Paint) -> None:
    """Goes on while the relay is restarted: that is when people watch."""
    redraw = paint.on and not options.json
    say(_CLEAR if redraw else "")
    try:
        while True:
            try:
                status = _status(state, options.name)
            except CommandFailed as failed:
                text = json.dumps({"error": str(failed)}) if options.json else str(failed)
                text += "\n"
            else:
                text = json.dumps(status) + "\n" if options.json else lay_out(status, paint)
            say(_redrawn(text) if redraw else text)
            time.sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:
        say("\n")


def _redrawn(text: str) -> str:
    """`text` in the place of what was there, as much of it as the terminal has lines."""
    lines = text.splitlines()
    room = shutil.get_terminal_size().lines - 1
    if len(lines) > room:
        lines[room - 1 :] = [f"and {len(lines) - room + 1} lines more"]
    return _HOME + "".join(line + _CLEAR_LINE for line in lines) + _CLEAR_BELOW


def _status(state: StateFolder, name: str | None) -> ShownStatus:
    """What the relay says of itself, and who is enrolled that it does not know of."""
    with existing_registry(state) as registry:
        enrolled = [agent.name for agent in registry.agents()]
    status = ask_status(state)
    if status is None:
        raise CommandFailed(f"the relay is not running; see: {PROGRAM} doctor")
    here = {one["name"] for one in status["agents"]}
    shown: ShownStatus = {**status, "absent": sorted(set(enrolled) - here)}
    if name is not None:
        if name not in here | set(enrolled):
            raise CommandFailed(f"{name} is not enrolled; {PROGRAM} agents lists who is")
        shown["agents"] = [one for one in shown["agents"] if one["name"] == name]
        shown["absent"] = [one for one in shown["absent"] if one == name]
    return shown


def lay_out(status: ShownStatus, paint: Paint) -> str:
    agents = status["agents"]
    here = sum(one["attached"] for one in agents)
    away = len(agents) - here + len(status["absent"])
    streams = sum(len(one["streams"]) for one in agents)
    lines = [
        wrapped(
            f"relay {status['version']}, up {span(status['age'])},"
            f" on {', '.join(status['listening'])}",
            "",
            "  ",
        ),
        f"{counted(here, 'agent')} attached, {away} away, {counted(streams, 'visitor')}",
    ]
    for one in sorted(agents, key=lambda one: str(one["name"])):
        lines += ["", *_agent_lines(one, paint)]
    if status["absent"]:
        absent = f"not here since the relay started: {', '.join(status['absent'])}"
        lines += ["", wrapped(absent, "", "  ")]
    elif not agents:
        lines.append(f"no agent is enrolled; invite one: {PROGRAM} invite NAME")
    return "\n".join(lines) + "\n"


def _agent_lines(agent: AgentStatus, paint: Paint) -> list[str]:
    first, *more = link_lines(agent["attached"], agent["link"], paint)
    lines = [f"{paint('bold', agent['name'])}  {first}", *more]
    for one in agent["services"]:
        streams = [stream for stream in agent["streams"] if stream["port"] == one["port"]]
        if one["state"] == "closed" and not streams and not one["refused"]:
            continue
        lines.append(f"  {service_name(one['service'])} on port {one['port']}{_state(one, paint)}")
        lines += [f"    {line}" for line in stream_lines(streams, side=Side.RELAY)]
        for reason, count in sorted(one["refused"].items(), key=lambda item: -item[1]):
            lines.append(f"    refused {count}: {sentence_of(reason)}")
    if agent["waiting"]:
        lines.append(f"  {counted(agent['waiting'], 'visitor')} waiting for the agent")
    return lines


def _state(service: ServiceStatus, paint: Paint) -> str:
    match service["state"]:
        case "busy":
            return paint("red", "  another program holds it")
        case "closed":
            return paint("yellow", "  closed")
    return "" if service["published"] else paint("yellow", "  open, but not published now")
