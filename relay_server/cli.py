"""`relay-server`: run the relay, invite agents, look after them."""

from __future__ import annotations

import argparse
import errno
import json
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from protocol import __version__
from protocol.invitation import MAX_HOSTS, TOKEN_SIZE, Invitation
from protocol.noise import StaticKey
from protocol.process import logs
from protocol.process.command import (
    CommandFailed,
    add_common_options,
    add_log_options,
    run_command,
    say,
)
from protocol.process.config import ConfigError, between, parse_duration
from protocol.process.state import StateError, StateFolder, default_state_dir
from relay_server import admin
from relay_server.config import (
    DEFAULT_PORT,
    Host,
    load_config,
    parse_bind,
    parse_host,
    parse_listen,
)
from relay_server.registry import FILE as REGISTRY
from relay_server.registry import Agent, Refused, Registry, parse_name

_T = TypeVar("_T")

PROGRAM: Final = "relay-server"
KEY: Final = "relay.key"
LOCK: Final = "run.lock"
# A script may be done in seconds; a month is a second password rather than a token.
_MIN_LIFETIME, _MAX_LIFETIME = "1s", "30d"

# What a terminal has at least.
_COLUMNS: Final = 80

_EXAMPLES: Final = """\
from nothing to a login:
  on the VPS            relay-server run --host vps.example.net
                        relay-server invite home --port 11111
  on the router         relay-agent join relay1_...
                        relay-agent run
  from anywhere         ssh -p 11111 root@vps.example.net

"relay-server COMMAND --help" tells more about each command.
"""

_RUN_EXAMPLES: Final = """\
examples:
  relay-server run --host vps.example.net
  relay-server run --listen '[::]:7022' --listen '[::]:443' \\
                   --host vps.example.net --host vps.example.net:443

--host is remembered: give it at the first start and when it changes.
"""

_INVITE_EXAMPLES: Final = """\
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


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logs.configure(options.log_level or "info", options.log_format or "text")
    return run_command(partial(_run, options), program=PROGRAM)


def _run(options: argparse.Namespace) -> None:
    state = StateFolder(options.state_dir or default_state_dir(PROGRAM))
    command: Callable[[argparse.Namespace, StateFolder], None] = options.command
    try:
        command(options, state)
    except Refused as refused:
        raise CommandFailed(str(refused)) from None


# The command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="The relay on the VPS: makes routers behind NAT reachable by plain ssh.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_common_options(parser, __version__)
    _add_state_option(parser, default=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _command(commands, "run", run_server, "run the relay until it is told to stop")
    run.epilog = _RUN_EXAMPLES
    run.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with options (default: server.toml in the state folder, if there)",
    )
    run.add_argument(
        "--listen",
        action="append",
        default=[],
        type=_reader(parse_listen),
        metavar="ADDRESS:PORT",
        help=f"where agents dial in; repeatable (default: [::]:{DEFAULT_PORT}, IPv4 and IPv6)",
    )
    _add_host_option(run, "the name or address of this VPS as agents reach it, remembered;")
    run.add_argument(
        "--bind",
        type=_reader(parse_bind),
        metavar="ADDRESS",
        help="the address public ports open on (default: all)",
    )

    invite = _command(commands, "invite", invite_agent, "print an invitation for a router")
    invite.epilog = _INVITE_EXAMPLES
    invite.add_argument(
        "name", type=_reader(parse_name), metavar="NAME", help="what to call the router"
    )
    invite.add_argument(
        "--port",
        action="append",
        default=[],
        type=_reader(_parse_port),
        metavar="N",
        help="a public port it may publish; repeatable, the first is for its ssh"
        " (default: those it has, else a free one)",
    )
    invite.add_argument(
        "--expires",
        type=_reader(between(parse_duration, _MIN_LIFETIME, _MAX_LIFETIME)),
        default=3600.0,
        metavar="TIME",
        help="how long it can be used, such as 30m, 1h or 2d (default: 1h)",
    )
    _add_host_option(invite, "dial this instead of the hosts that `run` was given;")

    invitations = _command(commands, "invitations", list_invitations, "list or cancel invitations")
    what = invitations.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="for machines")
    what.add_argument(
        "--cancel",
        type=_reader(parse_name),
        metavar="NAME",
        help="make the pending invitation of NAME worthless",
    )

    agents = _command(commands, "agents", list_agents, "list the agents and how they are")
    agents.add_argument("--json", action="store_true", help="for machines")

    revoke = _command(commands, "revoke", revoke_agent, "cut an agent off for good, at once")
    revoke.add_argument("name", type=_reader(parse_name), metavar="NAME", help="see `agents`")
    return parser


def _command(
    commands: Any,  # argparse keeps the type to itself
    name: str,
    function: Callable[[argparse.Namespace, StateFolder], None],
    summary: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=function)
    _add_state_option(parser, default=argparse.SUPPRESS)
    add_log_options(parser)
    return parser


def _add_state_option(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """Before the command or after it, as the log options."""
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=default,
        metavar="DIR",
        help="where keys and registry are (default: /var/lib/relay-server as root,"
        " else ~/.local/state/relay-server)",
    )


def _add_host_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        type=_reader(parse_host),
        metavar="NAME[:PORT]",
        help=f"{what} repeatable, agents try them in this order",
    )


def _reader(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Give argparse the parser's own words about what is expected."""

    def read(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError(f"expected a port from 1 to 65535, not {text!r}")
    return int(text)


# Commands


def run_server(options: argparse.Namespace, state: StateFolder) -> None:
    config = load_config(
        options.config,
        state.path,
        listen=options.listen,
        hosts=_at_most_eight(options.host),
        bind=options.bind,
    )
    logs.configure(options.log_level or config.log_level, options.log_format or config.log_format)
    # Only here: the other commands need none of it and are done sooner.
    from relay_server.server import serve

    state.ensure()
    with state.lock(LOCK), Registry(state) as registry:
        key = _relay_key(state, registry)
        if config.hosts:
            registry.remember_hosts(config.dialled)
        registry.remember_link_ports(config.link_ports)
        registry.remember_port_range(config.ports)
        trio.run(serve, config, state, registry, key)


def invite_agent(options: argparse.Namespace, state: StateFolder) -> None:
    given = _at_most_eight(options.host)
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
        key = _relay_key(state, registry)
        for port in options.port:
            if port in link_ports:
                raise CommandFailed(f"port {port} is where agents dial in; choose another")
        token = secrets.token_bytes(TOKEN_SIZE)
        invitation = Invitation(
            hosts=tuple((host.host, host.port) for host in hosts),
            relay_key=key.public,
            token=token,
        )
        before = registry.agent(options.name)
        its_own = before.ports if before is not None else ()
        held = [port for port in options.port if port not in its_own and not _is_free(port)]
        invited = registry.invite(
            options.name,
            token,
            now=time.time(),
            lifetime=options.expires,
            port_range=registry.port_range() or config.ports,
            ports=options.port,
            usable=lambda port: port not in link_ports and _is_free(port),
        )
        if not registry.hosts():
            registry.remember_hosts(hosts)
    say(invitation.encode() + "\n")
    _hint(f"{invited.name} may publish {_ports_in_words(invited.ports)}.")
    if held:
        _hint(f"Another program listens on {_ports_in_words(held)} now; it has to let go first.")
    _hint(f"Within {_span(options.expires)}, run this on the router:")
    _hint("  relay-agent join INVITATION     (the line above)")
    _hint("  relay-agent run")
    _hint(f"Then, from anywhere: ssh -p {invited.ports[0]} root@{hosts[0].host}")


def list_invitations(options: argparse.Namespace, state: StateFolder) -> None:
    with _existing(state) as registry:
        if options.cancel is not None:
            registry.cancel(options.cancel)
            _hint(f"the invitation for {options.cancel} is cancelled")
            return
        invitations = registry.invitations()
    now = time.time()
    if options.json:
        _say_json(
            {
                "name": one.name,
                "ports": list(one.ports),
                "created": int(one.created),
                "expires": int(one.expires),
                "expired": one.expires <= now,
            }
            for one in invitations
        )
    elif invitations:
        rows = [
            (
                one.name,
                _port_list(one.ports),
                "expired" if one.expires <= now else f"in {_span(one.expires - now)}",
            )
            for one in invitations
        ]
        say(_table(("NAME", "PORTS", "EXPIRES"), rows))
    else:
        _hint("no invitation is pending")


def list_agents(options: argparse.Namespace, state: StateFolder) -> None:
    with _existing(state) as registry:
        agents = registry.agents()
    answer = admin.ask(state.path / admin.SOCKET, "agents")
    running = answer is not None
    present = {one["name"]: one for one in answer["agents"]} if answer is not None else {}
    entries = [_agent_entry(agent, present.get(agent.name), running) for agent in agents]
    if options.json:
        _say_json(entries)
        return
    if not running:
        _hint("the relay is not running")
    if not entries:
        _hint(f"no agent is enrolled; invite one: {PROGRAM} invite NAME")
        return
    now = time.time()
    rows = [
        (
            entry["name"],
            _port_list(entry["ports"]),
            entry["status"],
            "" if entry["since"] is None else _span(now - entry["since"]),
            str(entry["streams"]),
            entry["address"] or "",
        )
        for entry in entries
    ]
    say(_table(("NAME", "PORTS", "STATUS", "SINCE", "STREAMS", "ADDRESS"), rows))


def _agent_entry(agent: Agent, present: dict[str, Any] | None, running: bool) -> dict[str, Any]:
    """What `agents --json` says of one; a script may rely on each of the keys."""
    entry: dict[str, Any] = {
        "name": agent.name,
        "ports": list(agent.ports),  # granted
        "enrolled": int(agent.enrolled or 0),  # like `since` in seconds since the epoch
        "status": "absent" if running else "unknown",
        "since": None,
        "address": None,
        "streams": 0,
        "open_ports": [],
        "refused": {},  # how many visitors, by reason, since the relay started
    }
    if present is not None:
        entry["status"] = "attached" if present["attached"] else "detached"
        entry["since"] = int(time.time() - present["since"])
        entry["address"] = present["address"]
        entry["streams"] = present["streams"]
        entry["open_ports"] = present["ports"]
        entry["refused"] = present["refused"]
    return entry


def revoke_agent(options: argparse.Namespace, state: StateFolder) -> None:
    with _existing(state) as registry:
        registry.revoke(options.name, time.time())
    try:
        running = admin.ask(state.path / admin.SOCKET, "refresh") is not None
    except CommandFailed as failed:
        raise CommandFailed(f"{options.name} is revoked, but may still be here: {failed}") from None
    _hint(f"{options.name} is revoked{' and cut off' if running else ''}")


# What they share


def _existing(state: StateFolder) -> Registry:
    """The registry, without making one where there was none."""
    if not (state.path / REGISTRY).exists():
        raise StateError(
            f"{state.path}: no relay has its state here; {PROGRAM} run makes it,"
            " --state-dir names another folder"
        )
    state.ensure()
    return Registry(state)


def _relay_key(state: StateFolder, registry: Registry) -> StaticKey:
    """The key that agents know this relay by, made if nobody knows one yet."""
    file = state.path / KEY
    text = state.read_secret(KEY)
    if text is None:
        if registry.agents() or registry.invitations():
            raise StateError(
                f"{file}: missing; agents know this relay by this key: put it back, or move"
                f" {REGISTRY} away as well and invite every agent again"
            )
        # Another process may do the same at this moment; the first key stays.
        state.write_secret(KEY, StaticKey.generate().private.hex() + "\n", replace=False)
        text = state.read_secret(KEY) or ""
    try:
        return StaticKey.from_private(bytes.fromhex(text))
    except ValueError:
        # Without the text, which may be most of a secret.
        raise StateError(f"{file}: expected a private key of 64 hexadecimal digits") from None


def _at_most_eight(hosts: Sequence[Host]) -> Sequence[Host]:
    if len(hosts) > MAX_HOSTS:
        raise ConfigError(f"--host: expected at most {MAX_HOSTS} hosts, not {len(hosts)}")
    return hosts


def _is_free(port: int) -> bool:
    """Whether no other program listens on `port` now."""
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 - where public ports open
        try:
            with socket.socket(family) as probe:
                # As the server does; else sockets in TIME-WAIT would count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
    return True


def _say_json(entries: Iterable[dict[str, Any]]) -> None:
    say(json.dumps(list(entries), indent=2) + "\n")


def _hint(text: str) -> None:
    """For the person at the terminal; standard output is for what was asked for."""
    sys.stderr.write(text + "\n")


def _ports_in_words(ports: Sequence[int]) -> str:
    return f"port{'s'[: len(ports) > 1]} {', '.join(map(str, ports))}"


def _port_list(ports: Sequence[int]) -> str:
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]} +{len(ports) - 1}"


def _span(seconds: float) -> str:
    """The two biggest units of a duration, such as 2d3h, 1h30m or 59s."""
    rest = max(int(seconds), 0)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        parts.append((count, unit))
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    first, *others = parts
    return f"{first[0]}{first[1]}" + "".join(f"{n}{unit}" for n, unit in others[:1] if n)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns for a terminal of 80; a last cell that does not fit has a line of its own."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head) - 1)]
    lines = []
    for row in (head, *rows):
        start = "".join(f"{cell:{width}}  " for cell, width in zip(row, widths, strict=False))
        if len(start) + len(row[-1]) > _COLUMNS:
            lines.append(start.rstrip())
            start = "    "
        lines.append((start + row[-1]).rstrip())
    return "\n".join(lines) + "\n"
