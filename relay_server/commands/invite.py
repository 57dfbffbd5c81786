"""`relay-server invite`."""

from __future__ import annotations

import argparse
import errno
import secrets
import time
from typing import Final

from protocol.process.address import HostPort, parse_port
from protocol.process.cli.command import CommandFailed, hint, say
from protocol.process.cli.command_line import value_of
from protocol.process.cli.text import ports_in_words, span
from protocol.process.config import ConfigError, between, parse_duration
from protocol.process.names import parse_name
from protocol.process.state import StateFolder
from protocol.wire.identifiers import Token
from protocol.wire.invitation import TOKEN_SIZE, Invitation
from relay_server.config import load_config
from relay_server.net.bind_check import bind_error
from relay_server.options import (
    add_host_option,
    add_network_options,
    admission_of,
    at_most_eight,
)
from relay_server.registry.open import refresh_server
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import load_or_make

# A script may be done in seconds; a month is a second password rather than a token.
_MIN_LIFETIME, _MAX_LIFETIME = "1s", "30d"

_EXAMPLES: Final = """\
examples:
  relay-server invite home                 a free port is chosen
  relay-server invite home --port 11111    ssh -p 11111 root@VPS reaches it
  relay-server invite office --port 2201 --port 8080 --expires 1d

The line printed is for one router: give it to "relay-agent join" there before
it expires. Inviting a name again keeps its ports, and puts those given with
--port in front; once the new invitation is used, the key of the router that had
the name before is revoked. To take a port away, revoke the name and invite it
anew.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "name", type=value_of(parse_name), metavar="NAME", help="what to call the router"
    )
    parser.add_argument(
        "--port",
        action="append",
        default=[],
        type=value_of(parse_port),
        metavar="N",
        help="a public port it may publish; repeatable, the first is for its ssh"
        " (default: those it has, else a free one)",
    )
    parser.add_argument(
        "--expires",
        type=value_of(between(parse_duration, _MIN_LIFETIME, _MAX_LIFETIME)),
        default=3600.0,
        metavar="TIME",
        help="how long it can be used, such as 30m, 1h or 2d (default: 1h)",
    )
    add_network_options(parser)
    add_host_option(parser, "dial this instead of the hosts that `run` was given;")


def run(options: argparse.Namespace, state: StateFolder) -> None:
    given = at_most_eight(options.host)
    admission = admission_of(options)
    state.ensure()
    with Registry(state) as registry:
        # What `run` was told last; before its first start, what it would be told.
        config = load_config(None, state.path)
        link_ports = registry.link_ports() or config.link_ports
        hosts = tuple(host.at(link_ports[0]) for host in given) or registry.hosts()
        hosts = hosts or config.dialled
        if not hosts:
            raise ConfigError(
                "which name of this VPS do agents dial? Give it once by --host vps.example.net,"
                " here or to relay-server run"
            )
        key = load_or_make(state, registry).public
        for port in options.port:
            if port in link_ports:
                raise CommandFailed(f"port {port} is where agents dial in; choose another")
        token = Token(secrets.token_bytes(TOKEN_SIZE))
        invitation = Invitation(
            hosts=tuple((host.host, host.port) for host in hosts),
            relay_key=key,
            token=token,
        )
        before = registry.agent(options.name)
        its_own = before.ports if before is not None else ()
        held = [port for port in options.port if port not in its_own and not is_free(port)]
        invited = registry.invite(
            options.name,
            token,
            now=time.time(),
            lifetime=options.expires,
            port_range=registry.port_range() or config.ports,
            ports=options.port,
            usable=lambda port: port not in link_ports and is_free(port),
            admission=admission,
            relay_key=key,
        )
        agent = registry.agent(options.name)
        if not registry.hosts():
            registry.remember_hosts(hosts)
    say(invitation.encode() + "\n")
    hint(f"{invited.name} may publish {ports_in_words(invited.ports)}.")
    for port, admitted in agent.admissions if agent is not None else ():
        hint(f"Visitors to port {port} may come from: {admitted}.")
    if held:
        hint(f"Another program listens on {ports_in_words(held)} now; it has to let go first.")
    hint(f"Within {span(options.expires)}, run this on the router:")
    hint("  relay-agent join INVITATION     (the line above)")
    hint("  relay-agent run")
    hint(f"Then, from anywhere: ssh -p {invited.ports[0]} root@{hosts[0].host}")
    if before is not None and admission is not None:
        refresh_server(state, "the ports' visitors are changed, but perhaps not in effect yet")


def is_free(port: int) -> bool:
    """Whether no other program listens on `port` now."""
    everywhere = (HostPort("0.0.0.0", port), HostPort("::", port))  # noqa: S104 - where public ports open
    return errno.EADDRINUSE not in map(bind_error, everywhere)
