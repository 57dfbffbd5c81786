"""README and its translation have the same commands and links; commands are understood, links lead
somewhere. The prose of the two may differ, so that English can be changed by those without Chinese.
"""

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


def test_both_have_the_same_commands_and_output() -> None:
    assert code(CHINESE) == code(ENGLISH)


def test_both_name_the_same_commands_in_prose() -> None:
    assert set(commands(CHINESE)) == set(commands(ENGLISH))


def test_each_leads_to_the_other_and_both_to_the_same_documents() -> None:
    ours, theirs = links(ENGLISH), links(CHINESE)
    assert (ours.pop("README.zh-CN.md"), theirs.pop("README.md")) == (1, 1)
    assert ours.keys() == theirs.keys()


def test_the_index_has_every_document_once() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {name: count for name, count in links(index.read_text()).items() if "/" not in name}
    assert listed == {path.name: 1 for path in index.parent.glob("*.md") if path != index}


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
