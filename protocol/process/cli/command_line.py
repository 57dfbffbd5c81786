"""The command line of a program: what stands before the command, and a table of its commands.

Each command is a module with two functions:

    add_options(parser)     declares its options, and sets the description and epilog of its --help
    run(options, state)     does what it is for; returns the exit status, None for 0

The module is imported when the command line names it, before its options are parsed. So --help of
the program imports none of them. What takes a slow machine long to import belongs into `run`: a
mistyped option, and --help of the command, are then answered at once.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from protocol import __version__
from protocol.process.config import ConfigError
from protocol.process.logs import FORMATS, LEVELS
from protocol.process.state import Program, StateFolder, default_state_dir

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Command:
    name: str  # as users type it
    module: str  # its full name
    summary: str  # for --help of the program


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """`state_folder` says in --help what is in the state folder and where that is."""

    program: Program
    description: str
    epilog: str = ""
    state_folder: str
    commands: Sequence[Command]

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parse `arguments`, by default those of this process.

        Always in the result: `run`, the function of the command, and `state_dir`, `log_level` and
        `log_format`, each None when not given, so that a configuration file can have its say.

        Ends the process with status 2 if they are wrong, and with 0 for --help and --version.
        """
        return self._parser(_Parser).parse_args(arguments)

    def parse_again(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """As `parse`, but raises ConfigError if they are wrong.

        They can have become so when an argument names a file that more of them are in.
        """
        return self._parser(_RaisingParser).parse_args(arguments)

    def state_of(self, options: argparse.Namespace) -> StateFolder:
        return StateFolder(options.state_dir or default_state_dir(self.program))

    def _parser(self, parser_class: type[_Parser]) -> _Parser:
        parser = parser_class(
            prog=self.program,
            description=self.description,
            epilog=self.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # else a new option would change what old scripts mean
        )
        parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
        self._add_common_options(parser, default=None)
        commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        for command in self.commands:
            commands.add_parser(
                command.name,
                help=command.summary,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
                declare=partial(self._declare, command),
            )
        return parser

    def _declare(self, command: Command, parser: argparse.ArgumentParser) -> None:
        module = importlib.import_module(command.module)
        parser.description = f"{command.summary[0].upper()}{command.summary[1:]}."
        module.add_options(parser)
        # Before the command or after it: what is given before it is not undone.
        self._add_common_options(parser, default=argparse.SUPPRESS)
        parser.set_defaults(run=module.run)

    def _add_common_options(self, parser: argparse.ArgumentParser, *, default: str | None) -> None:
        parser.add_argument(
            "--state-dir", type=Path, default=default, metavar="DIR", help=self.state_folder
        )
        parser.add_argument(
            "--log-level",
            choices=LEVELS,
            default=default,
            help="how much to log on standard error: %(choices)s (default: info)",
            metavar="LEVEL",
        )
        parser.add_argument(
            "--log-format",
            choices=FORMATS,
            default=default,
            help="text for people, json for machines (default: text)",
        )


class _Parser(argparse.ArgumentParser):
    """`declare` is called with a command's parser once that is the one to parse."""

    def __init__(
        self,
        *arguments: Any,
        declare: Callable[[argparse.ArgumentParser], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._declare = declare

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        declare, self._declare = self._declare, None
        if declare is not None:
            declare(self)
        return super().parse_known_args(args, namespace)


class _RaisingParser(_Parser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines")


def add_config_option(parser: argparse.ArgumentParser, file: str) -> None:
    """`file` is the name of the program's configuration file in its state folder."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"options of your own, in TOML (default: {file} in the state folder, if any)",
    )


def value_of(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """`parse` as a `type=` of argparse, which then says in `parse`'s words what is expected."""

    def read(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
