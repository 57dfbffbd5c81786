"""The hooks before a commit check what `make lint` checks, with the same programs."""

from __future__ import annotations

import re

from tests.support.repository import ROOT


def test_the_hooks_are_those_of_make_lint() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"^ +entry: (?:\.venv/bin/)?(.+?)(?: --force-exclude)?$", hooks, re.M)
    (lint,) = re.findall(r"^lint: setup\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.M)
    commands = re.findall(r"^\t(?:\$\(BIN\)/)?(.+?)(?: \.| \$.+)?$", lint, re.M)
    assert sorted(entries) == sorted(commands)
    assert len(entries) == hooks.count("- id:")


def test_nothing_is_downloaded() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"- repo: (.+)", hooks)) == {"local"}
    assert set(re.findall(r"language: (.+)", hooks)) == {"system"}
