"""docs/security.md names the tests that show its claims: they exist. Its libraries are ours."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.metadata import requires

import pytest

from tests.support.repository import ROOT

TEXT = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[test for _, test in NAMED])
def test_a_named_test_exists(file: str, test: str) -> None:
    assert (ROOT / file).is_file()
    assert test in names_in(file)


def test_all_names_are_understood() -> None:
    assert len(re.findall(r"::\w+`", TEXT)) == len(re.findall(r"`tests/[\w/]+\.py::\w+`", TEXT))
    assert len(NAMED) > 50


def test_our_dependencies_are_listed() -> None:
    required = [one.replace('"', "'").partition("; ") for one in requires("ssh-relay") or []]
    ours = [(re.split(r"[^\w-]", one)[0], extra) for one, _, extra in required]
    assert ours
    for name, extra in ours:
        if extra == "extra == 'metrics'":
            assert f"| {name} (metrics) |" in TEXT
        elif not extra:
            assert f"| {name} |" in TEXT
