"""`relay-server agents`."""

from __future__ import annotations

import argparse
import time
from typing import Any

from protocol.process.cli.command import hint, say, say_json
from protocol.process.cli.command_line import add_json_option
from protocol.process.cli.status_text import service_name
from protocol.process.cli.text import port_list, span, table
from protocol.process.control.client import SOCKET, ask
from protocol.process.state import StateFolder
from protocol.wire.identifiers import RelayKey
from relay_server import PROGRAM
from relay_server.agents.reasons import sentence_of
from relay_server.registry.open import existing_registry
from relay_server.registry.registry import EnrolledAgent
from relay_server.registry.relay_keys import has_former


def add_options(parser: argparse.ArgumentParser) -> None:
    add_json_option(parser)


def run(options: argparse.Namespace, state: StateFolder) -> None:
    with existing_registry(state) as registry:
        agents = registry.agents()
        newest = registry.relay_key() if has_former(state) else None
    answer = ask(state.path / SOCKET, "agents")
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
    agent: EnrolledAgent, present: dict[str, Any] | None, running: bool, newest: RelayKey | None
) -> dict[str, Any]:
    """What `agents --json` says of one; a script may rely on each of the keys."""
    entry: dict[str, Any] = {
        "name": agent.name,
        "ports": list(agent.ports),  # granted
        "restricted": [  # those of them that do not admit everybody
            {
                "port": port,
                "allow": [str(network) for network in admission.allow],
                "deny": [str(network) for network in admission.deny],
            }
            for port, admission in agent.admissions
        ],
        "enrolled": int(agent.enrolled or 0),  # like `since` in seconds since the epoch
        "status": "absent" if running else "unknown",
        "since": None,
        "address": None,
        "streams": 0,
        "open_ports": [],
        "refused": {},  # how many visitors, by reason, since the relay started
        "services": [],  # the same for each service that was visited, and its port
        "follows": newest in (None, agent.relay_key),  # knows the relay by its current key
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
