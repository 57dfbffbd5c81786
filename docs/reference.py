"""Writes the pages that repeat what the programs say of themselves.

    docs/cli.md              --help of all commands
    docs/configuration.md    every key of server.toml and agent.toml
    deploy/examples/*.toml   the same as files to start from

`make docs` runs it. tests/unit/test_reference.py tells when a page is not what it would write.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final, get_args, get_type_hints

from protocol.process.address import HostPort
from protocol.process.cli.command_line import CommandLine
from relay_agent.cli import COMMAND_LINE as AGENT
from relay_agent.config import AgentConfig, ServiceTable
from relay_server.cli import COMMAND_LINE as RELAY
from relay_server.config import MetricsTable, ServerConfig
from relay_server.guard.rules import FOR_OTHERS, FOR_SSH, GuardTable
from relay_server.process.reload import NEEDS_RESTART

ROOT: Final = Path(__file__).resolve().parents[1]

_CLI: Final = """\
# Commands

What `--help` says of each command. `relay-server` runs on the VPS, `relay-agent` on the router.
`make docs` writes this page from the programs.

"""
_EXIT_STATUSES: Final = """\
## Exit statuses

Of all commands of both programs:

| status | meaning |
|---|---|
| 0 | done |
| 1 | it could not be done, for a reason outside of the command line; for `doctor`: a step failed |
| 2 | options, configuration or state folder are wrong |
| 130 | interrupted from the keyboard |

A failure is one line on standard error. Results are on standard output.
"""


def cli_page() -> str:
    programs = (RELAY, AGENT)
    return "".join([_CLI, *map(_commands, programs), *map(_helps, programs), _EXIT_STATUSES])


def _commands(line: CommandLine) -> str:
    """A row for each command, as --help of the program has them."""
    rows = (
        f"| [`{line.program} {one.name}`](#{line.program}-{one.name}) | {one.summary} |\n"
        for one in line.commands
    )
    return f"| `{line.program}` | |\n|---|---|\n{''.join(rows)}\n"


def _helps(line: CommandLine) -> str:
    sections = [f"## `{line.program}`\n\n{_help(line)}"]
    sections += (
        f"### `{line.program} {one.name}`\n\n{_help(line, one.name)}" for one in line.commands
    )
    return "".join(sections)


def _help(line: CommandLine, *command: str) -> str:
    said = io.StringIO()
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"  # which argparse fills up to two columns before
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            line.parse([*command, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width
    return f"```\n{said.getvalue().rstrip()}\n```\n\n"


_CONFIGURATION: Final = """\
# Configuration

Neither program needs a file. What you want to change goes into `server.toml` in the relay's state
folder (as root `/var/lib/relay-server`) and `agent.toml` in the agent's (as root
`/etc/relay-agent`); `--config` names another file. Start from
[server.toml](../deploy/examples/server.toml) and [agent.toml](../deploy/examples/agent.toml),
which have every key with its default.

`relay-server reload` and `relay-agent reload` put an edited file into effect without ending a
session. Where the tables say *restart*, the program has to be started anew. Windows and memory
apply to sessions that begin after the reload, lists and limits to visitors who come after it. A
key that is unknown, or a value that is wrong, is refused in one line that names it; on a reload
everything stays as it was then.

How values are written:

| value | examples |
|---|---|
| duration | `"250ms"`, `"30s"`, `"15m"`, `"1h"`, `"7d"`, or a number of seconds |
| size | `"64KiB"`, `"4MiB"`, `"1GiB"`, or a number of bytes |
| array of networks | `["203.0.113.0/24", "2001:db8::/32", "198.51.100.7"]` |

`make docs` writes this page from the programs.

"""
# Before which key of server.toml a heading stands.
_SERVER_SECTIONS: Final = {
    "listen": "Addresses",
    "log_level": "Log",
    "handshake_timeout": "Connections that have not proved anything yet",
    "detached_keep": "While an agent is away",
    "deny": "Visitors on public ports",
    "replay": "Memory",
}
_HEAD: Final = """\
| key | value | default | takes effect | meaning |
|---|---|---|---|---|
"""
_GUARD: Final = """
### `[guard."PATTERN"]`

What applies to visitors of some services: [guard.md](guard.md#what-can-be-set) has what a pattern
is, and examples. The first table that fits a service applies to it, and no other. A reload is
enough for all of them.

| key | value | default for SSH servers | for others | meaning |
|---|---|---|---|---|
"""
_SERVICES: Final = """
### `[services.NAME]`

A service that the agent publishes. With one such table or more, they replace the services that
`relay-agent join` settled. A name has 1 to 32 letters, digits, `.`, `_` or `-`.

"""
# What the example files have where a key has no default, and which keys are set in them. A copy of
# them that nobody has edited must do no harm.
_EXAMPLES: Final[dict[tuple[type, str], object]] = {
    (ServerConfig, "hosts"): ["vps.example.net"],
    (ServerConfig, "bind"): "203.0.113.5",
    (ServerConfig, "visitors_per_agent"): 256,
    (MetricsTable, "listen"): "127.0.0.1:9111",
    (ServiceTable, "target"): "127.0.0.1:80",
    (ServiceTable, "port"): 11112,
    (ServiceTable, "proxy_protocol"): "v2",
}
_SET: Final = {
    (schema, key)
    for schema in (ServerConfig, AgentConfig)
    for key in ("log_level", "detached_keep")
}


def configuration_page() -> str:
    server = _keys(ServerConfig)
    parts = [_CONFIGURATION, "## `server.toml`\n"]
    for key in server:
        if key.name in _SERVER_SECTIONS:
            parts += ["\n", f"### {_SERVER_SECTIONS[key.name]}\n\n", _HEAD]
        parts.append(key.row())
    parts += ["\n### `[metrics]`\n\nNumbers for Prometheus: [metrics.md](metrics.md).\n\n"]
    parts += [_HEAD, *(key.row(restart="metrics" in NEEDS_RESTART) for key in _keys(MetricsTable))]
    parts += [_GUARD, *(key.row_of_guard() for key in _keys(GuardTable))]
    parts += ["\n## `agent.toml`\n\n", _HEAD, *(key.row() for key in _keys(AgentConfig))]
    parts += [_SERVICES, _HEAD, *(key.row() for key in _keys(ServiceTable))]
    return "".join(parts)


@dataclass(frozen=True)
class Key:
    """A key of a configuration file: a field of `schema`."""

    schema: type
    field: Field[object]

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def meaning(self) -> str:
        return str(self.field.metadata["meaning"])

    @property
    def syntax(self) -> str:
        syntax = str(self.field.metadata.get("syntax", ""))
        if syntax:
            return _code(syntax) if syntax.startswith('"') else syntax
        hint = get_type_hints(self.schema)[self.name]
        literals = [one for part in (hint, *get_args(hint)) for one in get_args(part)]
        values = [one for one in literals if isinstance(one, str)]
        return ", ".join(_code(self.toml(one)) for one in values or (True, False))

    def row(self, *, restart: bool = False) -> str:
        effect = "restart" if restart or self._needs_restart else "reload"
        return (
            f"| `{self.name}` | {self.syntax} | {self._default()} | {effect} | {self.meaning} |\n"
        )

    def row_of_guard(self) -> str:
        default = self.field.metadata.get("absent")
        defaults = [
            default or _code(self.toml(getattr(rules, self.name)))
            for rules in (FOR_SSH, FOR_OTHERS)
        ]
        return f"| `{self.name}` | {self.syntax} | {' | '.join(defaults)} | {self.meaning} |\n"

    def line(self) -> str:
        """For an example file."""
        if (self.schema, self.name) in _EXAMPLES:
            value = _EXAMPLES[self.schema, self.name]
        else:
            value = getattr(FOR_SSH, self.name) if self.schema is GuardTable else self.field.default
        comment = "" if (self.schema, self.name) in _SET else "# "
        return f"{comment}{self.name} = {self.toml(value)}\n"

    def toml(self, value: object) -> str:
        """`value` as a user writes it."""
        kind = str(self.field.metadata.get("syntax", "")).partition(",")[0]
        match value:
            case bool():
                return str(value).lower()
            case int() | float() if kind == "duration":
                return f'"{_in_units(round(value * 1000), _DURATIONS)}"'
            case int() if kind == "size":
                return f'"{_in_units(value, _SIZES)}"'
            case int() | float():
                return f"{value:g}"
            case range():
                return f'"{value[0]}-{value[-1]}"'
            case IPv4Network() | IPv6Network() if value.num_addresses == 1:
                return f'"{value.network_address}"'
            case str() | HostPort() | IPv4Network() | IPv6Network():
                return f'"{value}"'
            case Iterable():
                return f"[{', '.join(self.toml(one) for one in value)}]"
        raise TypeError(f"{self.name}: {value!r}")

    @property
    def _needs_restart(self) -> bool:
        return self.schema is ServerConfig and self.name in NEEDS_RESTART

    def _default(self) -> str:
        if self.field.default is MISSING:
            return "none: it is required"
        return self.field.metadata.get("absent") or _code(self.toml(self.field.default))


def _keys(schema: type) -> list[Key]:
    """In the order of the dataclass, without those that are tables."""
    return [Key(schema, one) for one in fields(schema) if "meaning" in one.metadata]


def _code(text: str) -> str:
    return f"`{text}`"


_DURATIONS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_SIZES: Final = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}


def _in_units(number: int, units: Mapping[str, int]) -> str:
    """In the largest unit that leaves no fraction; 0 in seconds or bytes."""
    if not number:
        return "0s" if "s" in units else "0B"
    unit = next(name for name, size in units.items() if number % size == 0)
    return f"{number // units[unit]}{unit}"


_SERVER_EXAMPLE: Final = """\
# Options of relay-server. Copy this file to server.toml in the relay's state folder (as root
# /var/lib/relay-server) and change what you want. Every key that is commented out has its default,
# or an example if it has none. After an edit: relay-server reload
# What each key means, and what else it may be: docs/configuration.md

"""
_AGENT_EXAMPLE: Final = """\
# Options of relay-agent. Copy this file to agent.toml in the agent's state folder (as root
# /etc/relay-agent) and change what you want. Every key that is commented out has its default, or an
# example if it has none. After an edit: relay-agent reload
# What each key means, and what else it may be: docs/configuration.md

"""
_GUARD_EXAMPLE: Final = """
# For the service `shell` of the agent `home`. The values are the defaults for SSH servers.
# [guard."home/shell"]
"""
_SERVICE_EXAMPLE: Final = """
# A service. With one such table or more, those that `join` settled are not published.
# [services.web]
"""


def server_example() -> str:
    parts = [_SERVER_EXAMPLE, *(key.line() for key in _keys(ServerConfig))]
    parts += ["\n# [metrics]\n", *(key.line() for key in _keys(MetricsTable))]
    parts += [_GUARD_EXAMPLE, *(key.line() for key in _keys(GuardTable))]
    return "".join(parts)


def agent_example() -> str:
    parts = [_AGENT_EXAMPLE, *(key.line() for key in _keys(AgentConfig))]
    parts += [_SERVICE_EXAMPLE, *(key.line() for key in _keys(ServiceTable))]
    return "".join(parts)


PAGES: Final[dict[Path, Callable[[], str]]] = {
    ROOT / "docs" / "cli.md": cli_page,
    ROOT / "docs" / "configuration.md": configuration_page,
    ROOT / "deploy" / "examples" / "server.toml": server_example,
    ROOT / "deploy" / "examples" / "agent.toml": agent_example,
}


def main() -> None:
    for path, page in PAGES.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(page())


if __name__ == "__main__":
    main()
