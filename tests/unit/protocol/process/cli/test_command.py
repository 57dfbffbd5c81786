from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from typing import NoReturn

import pytest

from protocol.process.cli.command import (
    CommandFailed,
    add_common_options,
    add_log_options,
    run_command,
    say,
)
from protocol.process.config import ConfigError
from protocol.process.state import StateError


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prog")
    add_common_options(parser, "1.2.3")
    commands = parser.add_subparsers()
    add_log_options(commands.add_parser("go"))
    return parser


@pytest.mark.parametrize(
    ("arguments", "level", "log_format"),
    [
        ([], None, None),
        (["go"], None, None),
        (["--log-level", "debug", "go"], "debug", None),
        (["go", "--log-level", "debug"], "debug", None),
        (["--log-level", "error", "go", "--log-level", "debug"], "debug", None),
        (["--log-format", "json", "go", "--log-level", "debug"], "debug", "json"),
    ],
)
def test_log_options_before_and_after_the_subcommand(
    arguments: list[str], level: str | None, log_format: str | None
) -> None:
    options = parser().parse_args(arguments)
    assert (options.log_level, options.log_format) == (level, log_format)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == "prog 1.2.3\n"


def test_a_wrong_level_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["go", "--log-level", "loud"])
    assert caught.value.code == 2
    assert "debug" in capsys.readouterr().err


def raising(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("a"), 2, "prog: a\n"),
        (StateError("b"), 2, "prog: b\n"),
        (CommandFailed("c\nd"), 1, "prog: c d\n"),
        (KeyboardInterrupt(), 130, ""),
        (BaseExceptionGroup("g", [ExceptionGroup("h", [StateError("b")])]), 2, "prog: b\n"),
        (BaseExceptionGroup("g", [KeyboardInterrupt()]), 130, ""),
    ],
)
def test_how_a_command_ends(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    assert run_command(lambda: raising(error), program="prog") == status
    assert capsys.readouterr() == ("", line)


def test_a_command_that_does_not_fail() -> None:
    assert run_command(lambda: None, program="prog") == 0
    assert run_command(lambda: 3, program="prog") == 3


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)
    for group in (
        ExceptionGroup("g", [StateError("x"), ValueError("y")]),
        ExceptionGroup("g", [ValueError("y")]),
    ):
        with pytest.raises(ExceptionGroup):
            run_command(lambda group=group: raising(group))  # type: ignore[misc]  # the default binds the loop's variable


@pytest.mark.parametrize("argv0", ["/x/relay_server/__main__.py", "/bin/relay-server"])
def test_the_program_is_named_however_it_was_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv0: str
) -> None:
    monkeypatch.setattr(sys, "argv", [argv0])
    run_command(lambda: raising(StateError("x")))
    assert capsys.readouterr().err == "relay-server: x\n"


def test_no_standard_output_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert run_command(lambda: say("x"), program="prog") == 0


def test_output_that_cannot_be_written_is_a_failure_of_one_line() -> None:
    script = (
        "import sys; from protocol.process.cli.command import run_command, say;"
        "sys.exit(run_command(lambda: say('x'), program='prog'))"
    )
    with open("/dev/full", "w") as full:  # noqa: PTH123 - as short as can be
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "prog: cannot write the output: No space left on device\n"


def test_output_that_cannot_be_written_within(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(CommandFailed, match="Broken pipe"):
            say("x")
        closed.write("to nobody now")


def test_say_is_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw))
    say("x")
    assert raw.getvalue() == b"x"
