"""`relay-server restrict`."""

from __future__ import annotations

import argparse
from typing import Final

from protocol.process.address import parse_port
from protocol.process.cli.command import hint
from protocol.process.cli.command_line import value_of
from protocol.process.cli.text import ports_in_words
from protocol.process.config import ConfigError
from protocol.process.names import parse_name
from protocol.process.state import StateFolder
from relay_server.net.networks import Admission
from relay_server.options import add_network_options, admission_of
from relay_server.registry.open import existing_registry, refresh_server

_EXAMPLES: Final = """\
examples:
  relay-server restrict home --allow 203.0.113.0/24 --allow 2001:db8::/32
  relay-server restrict office --port 2201 --deny 198.51.100.7
  relay-server restrict home --lift

What is given replaces what the ports had. It holds at once, for everybody who
comes from now on; who is in stays in. What server.toml says for all ports
("allow", "deny") holds besides. "relay-agent join" visits its port from where
the router is.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument("name", type=value_of(parse_name), metavar="NAME", help="see `agents`")
    parser.add_argument(
        "--port",
        action="append",
        default=[],
        type=value_of(parse_port),
        metavar="N",
        help="only this one of its ports; repeatable (default: all)",
    )
    add_network_options(parser)
    parser.add_argument("--lift", action="store_true", help="everybody may visit again")


def run(options: argparse.Namespace, state: StateFolder) -> None:
    admission = admission_of(options)
    if (admission is not None) == options.lift:
        raise ConfigError("expected --allow or --deny, or --lift to admit everybody again")
    with existing_registry(state) as registry:
        admission = admission or Admission()
        ports = registry.admit(options.name, admission, options.port)
    refresh_server(state, "it is written down, but may not be in effect yet")
    hint(f"visitors to {ports_in_words(ports)} of {options.name} may come from: {admission}")
