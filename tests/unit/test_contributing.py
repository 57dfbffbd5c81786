"""CONTRIBUTING.md sends a newcomer to files, tests and targets: they exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = sorted(set(re.findall(r"`((?:\w[\w-]*/)+[\w.-]*\w)`", TEXT)))
TARGETS = sorted(
    set(re.findall(r"\bmake ((?:[a-z][\w-]* ?)+)", "\n".join(re.findall(r"`[^`]+`", TEXT))))
)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_it_names_is_there(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("names", TARGETS)
def test_a_target_that_it_names_is_there(names: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in names.split():
        assert re.search(rf"^{name}:", makefile, re.M), name


def test_the_tests_of_its_example_are_there() -> None:
    (file,) = {name for name in FILES if name.endswith("/test_logs.py")}
    tests = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(tests) == 2
    for test in tests:
        assert f"def {test}(" in (ROOT / file).read_text()


def test_all_of_them_are_found() -> None:
    assert len(FILES) > 20
    assert len(TARGETS) > 15
