from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import NoReturn

import pytest

from protocol.process.cli.command import CommandFailed, run_command, say
from protocol.process.config import ConfigError
from protocol.process.state import StateError


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
        run_command(lambda: 1 // 0, program="prog")
    for group in (
        ExceptionGroup("g", [StateError("x"), ValueError("y")]),
        ExceptionGroup("g", [ValueError("y")]),
    ):
        with pytest.raises(ExceptionGroup):
            run_command(lambda group=group: raising(group), program="prog")  # type: ignore[misc]  # the default binds the loop's variable


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
