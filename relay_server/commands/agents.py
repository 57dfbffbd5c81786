"""`relay-server agents`."""

from __future__ import annotations

import argparse
import time
from typing import Literal, TypedDict

from protocol.process.cli.command import hint, say, say_json
from protocol.process.cli.command_line import add_json_option
from protocol.process.cli.status_text import service_name
from protocol.process.cli.text import port_list, span, table
from protocol.process.state import StateFolder
from protocol.wire.identifiers import RelayKey
from relay_server import PROGRAM
from relay_server.agents.reasons import sentence_of
from relay_server.agents.status import AgentOverview, ServiceRefusals, ask_overview
from relay_server.registry.open import existing_registry
from relay_server.registry.registry import EnrolledAgent
from relay_server.registry.relay_keys import has_former


class Restriction(TypedDict):
    """Which networks may visit a port."""

    port: int
    allow: list[str]
    deny: list[str]


class AgentEntry(TypedDict):
    """What `agents --json` says of one agent; a script may rely on each of the keys."""

    name: str
    ports: list[int]  # granted
    restricted: list[Restriction]  # those of them that do not admit everybody
    enrolled: int  # like `since` in seconds since the epoch
    status: Literal["attached", "detached", "absent", "unknown"]
    since: int | None
    address: str | None
    streams: int
    open_ports: list[int]
    refused: dict[str, int]  # visitors by `Refusal`, since the relay started
    services: list[ServiceRefusals]  # the same for each service that was visited
    follows: bool  # knows the relay by its current key


def add_options(parser: argparse.ArgumentParser) -> None:
    add_json_option(parser)


def run(options: argparse.Namespace, state: StateFolder) -> None:
    with existing_registry(state) as registry:
        agents = registry.agents()
        newest = registry.relay_key() if has_former(state) else None
    answer = ask_overview(state)
    running = answer is not None
    present = {one["name"]: one for one in answer["agents"]} if answer is not None else {}
    entries = [_agent_entry(agent, present.get(agent.name), running, newest) for agent in agents]
    if options.json:
        say_json(entries)
        return
    if not running:
        hint("the relay is not running")
    if not entries:
        hint(f"no agent is enrolled; invite one: {PROGRAM} invite NAME")
        return
    behind = [entry["name"] for entry in entries if not entry["follows"]]
    now = time.time()
    rows = [
        (
            entry["name"],
            port_list(entry["ports"]),
            entry["status"],
            "" if entry["since"] is None else span(now - entry["since"]),
            str(entry["streams"]),
            entry["address"] or "",
        )
        for entry in entries
    ]
    say(table(("NAME", "PORTS", "STATUS", "SINCE", "STREAMS", "ADDRESS"), rows))
    refused = [
        (entry["name"], service_name(one["service"]), str(count), sentence_of(reason))
        for entry in entries
        for one in entry["services"]
        for reason, count in sorted(one["refused"].items(), key=lambda item: -item[1])
    ]
    lists = [
        (entry["name"], str(one["port"]), rule, network)
        for entry in entries
        for one in entry["restricted"]
        for rule in ("allow", "deny")
        for network in one[rule]
    ]
    if lists:
        say("\n" + table(("NAME", "PORT", "VISITORS", "NETWORK"), lists))
    if refused:
        say("\n" + table(("NAME", "SERVICE", "REFUSED", "REASON"), refused))
    if behind:
        hint(f"not followed to the relay's new key yet: {', '.join(behind)}")


def _agent_entry(
    agent: EnrolledAgent, present: AgentOverview | None, running: bool, newest: RelayKey | None
) -> AgentEntry:
    entry: AgentEntry = {
        "name": agent.name,
        "ports": list(agent.ports),
        "restricted": [
            {
                "port": port,
                "allow": [str(network) for network in admission.allow],
                "deny": [str(network) for network in admission.deny],
            }
            for port, admission in agent.admissions
        ],
        "enrolled": int(agent.enrolled or 0),
        "status": "absent" if running else "unknown",
        "since": None,
        "address": None,
        "streams": 0,
        "open_ports": [],
        "refused": {},
        "services": [],
        "follows": newest in (None, agent.relay_key),
    }
    if present is not None:
        entry["status"] = "attached" if present["attached"] else "detached"
        entry["since"] = int(time.time() - present["since"])
        entry["address"] = present["address"]
        entry["streams"] = present["streams"]
        entry["open_ports"] = present["ports"]
        entry["refused"] = present["refused"]
        entry["services"] = present["services"]
    return entry
