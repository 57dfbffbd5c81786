"""README and its translation say the same, as far as a program can see; commands are understood."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay_agent import cli as agent_cli
from relay_server import cli as server_cli
from tests.support.repository import ROOT

ENGLISH, CHINESE = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))
COMMAND_LINES = {one.program: one for one in (server_cli.COMMAND_LINE, agent_cli.COMMAND_LINE)}
CHANGELOG = ROOT / "CHANGELOG.md"  # in which older commands keep their names
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def code(text: str) -> list[str]:
    """The lines of its code blocks."""
    return [line for line in text.splitlines() if line.startswith("    ")]


def inline(text: str) -> Counter[str]:
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return Counter(re.findall(r"`([^`\n]+)`", prose))


def links(text: str) -> Counter[str]:
    return Counter(re.findall(r"\]\(([^)]+)\)", text))


def shape(text: str) -> list[str]:
    """Headings, rows of tables, items of lists and code, one after the other."""
    marks = (("#", "heading"), ("|", "row"), ("- ", "item"), ("    ", "code"))
    return [
        kind
        for line in text.splitlines()
        for mark, kind in marks
        if re.match(rf"{re.escape(mark)}", line)
    ]


def test_both_have_the_same_parts() -> None:
    assert shape(CHINESE) == shape(ENGLISH)
    levels = [re.findall(r"^(#+) ", text, re.M) for text in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]


def test_both_have_the_same_commands_and_output() -> None:
    assert code(CHINESE) == code(ENGLISH)


def test_both_name_the_same_options_files_and_commands() -> None:
    assert inline(CHINESE) - inline(ENGLISH) == Counter()
    # Of two in one row, the translation may name `server.toml` once.
    assert set(inline(ENGLISH)) == set(inline(CHINESE))


def test_each_leads_to_the_other_and_both_to_the_same_documents() -> None:
    ours, theirs = links(ENGLISH), links(CHINESE)
    assert (ours.pop("README.zh-CN.md"), theirs.pop("README.md")) == (1, 1)
    assert ours == theirs


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in links(document.read_text()):
        if not re.match(r"https?:", target):
            path, _, anchor = target.partition("#")
            found = document.parent / path if path else document
            assert found.exists(), target
            if anchor and found.suffix == ".md":
                assert anchor in anchors(found.read_text()), target


@pytest.mark.parametrize(
    "document", [one for one in DOCUMENTS if one != CHANGELOG], ids=lambda path: path.name
)
def test_paths_that_are_named_exist(document: Path) -> None:
    ours = r"(?:protocol|relay_server|relay_agent|tests|deploy|docs|benchmarks)/[\w./-]*"
    for path in inline(document.read_text()):
        if re.fullmatch(ours, path):
            assert (ROOT / path).exists(), path


def anchors(text: str) -> set[str]:
    """What its headings are called in a link: lower case, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[str]:
    """Whatever is told to be typed of ours, without what stands for something."""
    typed = [*inline(text), *re.findall(r"^(?:    |\S*)[$#] (.*)$", text, re.M)]
    for one in typed:
        found = re.match(r"(?:sudo )?(relay-(?:server|agent) [^|#;&]+)", one)
        if found and not re.search(r"…|\.\.\.|\b[A-Z]{3,}\b|N$|\\$|\bCOMMAND\b", found[1]):
            yield found[1]


@pytest.mark.parametrize(
    "document", [one for one in DOCUMENTS if one != CHANGELOG], ids=lambda path: path.name
)
def test_commands_are_understood(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(document.read_text()):
        program, *arguments = shlex.split(command)
        if len(arguments) == 1:  # it may be only named
            arguments.append("--help")
        status: object = 0
        try:
            COMMAND_LINES[program].parse(arguments)
        except SystemExit as end:
            status = end.code
        assert status == 0, f"{command}: {capsys.readouterr().err}"


def test_commands_are_found() -> None:
    assert len(set(commands(ENGLISH))) > 15
