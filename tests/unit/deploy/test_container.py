"""What the container file copies is there, and what it runs is understood.

Building it takes a registry and minutes: docs/container.md tells what was tried by hand.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from relay_server.cli import COMMAND_LINE
from tests.support.repository import ROOT

FILE = ROOT / "deploy" / "container" / "Containerfile"
LINES = re.sub(r"\\\n\s*", "", FILE.read_text()).splitlines()


def instructions(name: str) -> list[str]:
    return [line.partition(" ")[2] for line in LINES if line.startswith(f"{name} ")]


def copied() -> list[str]:
    """The files and folders of the project that it takes."""
    every = [line.split() for line in instructions("COPY") if not line.startswith("--from")]
    return [source for *sources, _ in every for source in sources]


def test_what_it_copies_is_there() -> None:
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source


def test_what_the_project_is_made_of_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = project["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {pattern.removesuffix("*") for pattern in found}
    assert packages | {project["project"]["readme"], "pyproject.toml"} <= set(copied())


def test_nothing_else_is_sent_to_the_builder() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in rules if line.startswith("!")} == set(copied())
    assert "*" in rules


@pytest.mark.parametrize("name", ["CMD", "HEALTHCHECK"])
def test_what_it_runs_is_understood(name: str) -> None:
    (program,) = json.loads(*instructions("ENTRYPOINT"))
    (line,) = instructions(name)
    argv = json.loads(line[line.index("[") :])
    if name == "HEALTHCHECK":
        assert argv.pop(0) == program
    assert program == "relay-server"
    options = COMMAND_LINE.parse(argv)
    assert options.run is not None


def test_it_runs_as_nobody_in_particular_and_keeps_its_state_in_a_volume() -> None:
    (user,) = instructions("USER")
    (volume,) = instructions("VOLUME")
    text = FILE.read_text()
    assert re.search(rf"useradd --system .* {user}$", "\n".join(LINES).replace(" && ", "\n"), re.M)
    assert f"install -d -o {user} -g {user} -m 700 {volume}" in text
    assert f"XDG_STATE_HOME={Path(volume).parent} " in text
    assert Path(volume).name == "relay-server"


def test_the_port_is_the_one_that_the_relay_listens_on() -> None:
    from relay_server.config import DEFAULT_PORT

    assert instructions("EXPOSE") == [str(DEFAULT_PORT)]
