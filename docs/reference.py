"""Writes the pages whose text the programs have already: what every command says of itself.

    docs/cli.md    --help of all commands

`make docs` runs it. tests/unit/test_reference.py tells when a page is not what it would write.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from protocol.process.cli.command_line import CommandLine
from relay_agent.cli import COMMAND_LINE as AGENT
from relay_server.cli import COMMAND_LINE as RELAY

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


PAGES: Final[dict[Path, Callable[[], str]]] = {ROOT / "docs" / "cli.md": cli_page}


def main() -> None:
    for path, page in PAGES.items():
        path.write_text(page())


if __name__ == "__main__":
    main()
