from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType

import pytest

from protocol import __version__
from protocol.process.cli import command_line as module
from protocol.process.cli.command_line import Command, CommandLine, add_config_option, value_of
from protocol.process.config import ConfigError
from protocol.process.state import StateFolder

COMMAND_LINE = CommandLine(
    program="relay-agent",
    description="What it is for.",
    state_folder="where things are",
    commands=[
        Command("go", "made_up.go", "take one step"),
        Command("missing", "made_up.missing", "is not imported unless it is named"),
    ],
)


def run(_: argparse.Namespace, __: StateFolder) -> None:
    pass


@pytest.fixture(autouse=True)
def go(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.epilog = "examples: go"
        parser.fromfile_prefix_chars = "@"
        add_config_option(parser, "some.toml")
        parser.add_argument("--steps", type=value_of(int))

    go = ModuleType("made_up.go")
    go.add_options, go.run = add_options, run  # type: ignore[attr-defined]  # made up here
    monkeypatch.setitem(sys.modules, "made_up", ModuleType("made_up"))
    monkeypatch.setitem(sys.modules, "made_up.go", go)


@pytest.mark.parametrize(
    ("arguments", "level", "log_format"),
    [
        (["go"], None, None),
        (["--log-level", "debug", "go"], "debug", None),
        (["go", "--log-level", "debug"], "debug", None),
        (["--log-level", "error", "go", "--log-level", "debug"], "debug", None),
        (["--log-format", "json", "go", "--log-level", "debug"], "debug", "json"),
    ],
)
def test_log_options_before_and_after_the_command(
    arguments: list[str], level: str | None, log_format: str | None
) -> None:
    options = COMMAND_LINE.parse(arguments)
    assert (options.log_level, options.log_format) == (level, log_format)


def test_the_state_folder_before_and_after_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "default_state_dir", lambda program: tmp_path / program)
    for arguments, path in (
        (["go"], tmp_path / "relay-agent"),
        (["--state-dir", "/x", "go"], Path("/x")),
        (["go", "--state-dir", "/x"], Path("/x")),
        (["--state-dir", "/y", "go", "--state-dir", "/x"], Path("/x")),
    ):
        assert COMMAND_LINE.state_of(COMMAND_LINE.parse(arguments)) == StateFolder(path)


def test_a_command_has_its_own_options_and_its_function() -> None:
    options = COMMAND_LINE.parse(["go", "--steps", "3", "--config", "a"])
    assert (options.steps, options.config, options.run) == (3, Path("a"), run)


def test_a_value_that_is_wrong_is_told_in_the_words_of_its_parser(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert end_of("go", "--steps", "x") == 2
    assert "argument --steps: invalid literal for int()" in capsys.readouterr().err


def end_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as caught:
        COMMAND_LINE.parse(arguments)
    return caught.value.code


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("--version") == 0
    assert capsys.readouterr().out == f"relay-agent {__version__}\n"


def test_help_imports_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("--help") == 0
    text = capsys.readouterr().out
    assert "is not imported unless it is named" in text
    with pytest.raises(ModuleNotFoundError, match=r"made_up\.missing"):
        COMMAND_LINE.parse(["missing"])


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("go", "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: relay-agent go")
    for part in ("Take one step.", "some.toml", "--log-level", "where things are", "examples: go"):
        assert part in text


@pytest.mark.parametrize("arguments", [[], ["og"], ["go", "--log-level", "loud"], ["go", "--ste"]])
def test_wrong_arguments_are_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert end_of(*arguments) == 2
    assert capsys.readouterr().err.startswith("usage: relay-agent")


def test_parsed_again_they_are_an_error_that_ends_nothing(tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.write_text("--steps=3\n")
    arguments = ["go", f"@{more}"]
    assert COMMAND_LINE.parse(arguments).steps == 3
    more.write_text("--steps=4\n")
    assert COMMAND_LINE.parse_again(arguments).steps == 4
    more.write_text("--steps=x\n")
    with pytest.raises(ConfigError, match="argument --steps: invalid"):
        COMMAND_LINE.parse_again(arguments)
