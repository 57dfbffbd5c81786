"""`make pythons` finds every Python that pyproject.toml promises, or names it as missing."""

from __future__ import annotations

import re
import subprocess
import tomllib

from tests.support.repository import ROOT


def test_each_version_is_found_or_named_as_missing() -> None:
    done = subprocess.run(
        [ROOT / ".ci" / "pythons", "list"], capture_output=True, text=True, check=True
    )
    told = re.findall(r"^Python (3\.\d+)(?:\.\S+)?: (?:not found|/?\S+)$", done.stdout, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (
        re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", one)
        for one in project["classifiers"]
    )
    promised = [one[1] for one in found if one]
    assert promised
    # The next one may be there before it is promised.
    assert told[: len(promised)] == promised
    assert len(told) == len(done.stdout.splitlines())
    assert ": .venv/bin/python\n" in done.stdout
