"""`relay-server move`."""

from __future__ import annotations

import argparse
from typing import Final

from protocol.process.cli.command import happens, hint
from protocol.process.cli.command_line import value_of
from protocol.process.cli.text import counted
from protocol.process.config import ConfigError
from protocol.process.state import StateFolder
from relay_server.agents.status import ask_overview
from relay_server.config import DEFAULT_PORT, parse_host
from relay_server.options import at_most_eight
from relay_server.registry.open import existing_registry, refresh_server

# For agents that are here to come again and be told: what one attempt to attach may take.
TELL_LIMIT: Final = 10.0

_EXAMPLES: Final = """\
examples:
  relay-server move new.example.net
  relay-server move 203.0.113.9:443 [2001:db8::9]:443
  relay-server move --cancel

Agents keep these beside the hosts that they know, and try them when the relay
does not answer there; it has to prove its key at either. Those that are here
are told at once, others when they are next here; sessions go on. Then, once all
have been told: "export" here, "import" on the other machine, stop this one.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "host",
        nargs="*",
        type=value_of(parse_host),
        metavar="HOST[:PORT]",
        help="a name or address, agents try them in this order; they replace those told before"
        " (default port: the one that agents dial now)",
    )
    parser.add_argument("--cancel", action="store_true", help="there is no other place (any more)")


def run(options: argparse.Namespace, state: StateFolder) -> None:
    if bool(options.host) == options.cancel:
        raise ConfigError("expected HOST, or --cancel")
    given = at_most_eight(options.host, "HOST")
    here = {name for name, knows in _told(state).items() if knows is not None}
    with existing_registry(state) as registry:
        port = (*registry.link_ports(), DEFAULT_PORT)[0]
        registry.announce([host.at(port) for host in given])
        names = {agent.name for agent in registry.agents()}
    runs = refresh_server(state, "it is written down, but agents are not told yet")
    told: dict[str, bool | None] = {}

    def all_know() -> bool:
        nonlocal told
        told = _told(state)
        return all(told.get(name) for name in here)  # they go and come again meanwhile

    happens(all_know, within=TELL_LIMIT)
    if runs:
        hint(f"told: {sum(map(bool, told.values()))} of {counted(len(names), 'agent')}")
    deaf = sorted(name for name, knows in told.items() if knows is None)
    absent = sorted(name for name in names if not told.get(name) and name not in deaf)
    if absent:
        hint(f"to be told when they are here next: {', '.join(absent)}")
    if deaf:
        hint(f"too old to listen, so they need an update first: {', '.join(deaf)}")


def _told(state: StateFolder) -> dict[str, bool | None]:
    """Of the agents that are attached: whether they know, None where they never will."""
    answer = ask_overview(state)
    agents = answer["agents"] if answer is not None else []
    return {one["name"]: one["told"] for one in agents if one["attached"]}
