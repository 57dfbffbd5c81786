"""docs/modules.md has one line for each module of the three packages, and no line without one."""

from __future__ import annotations

import re
from collections import Counter

from tests.support.repository import ROOT

PACKAGES = ("protocol", "relay_server", "relay_agent")
TEXT = (ROOT / "docs" / "modules.md").read_text()


def documented() -> Counter[str]:
    """The files that the page names; a room's own heading stands for its `__init__.py`."""
    files = Counter[str]()
    room = ""
    for line in TEXT.splitlines():
        if heading := re.fullmatch(r"###? `([\w/]+/)`", line):
            room = heading[1]
            files[f"{room}__init__.py"] += 1
        elif row := re.fullmatch(r"\| `(\w+)` \| (\S.*\S) \|", line):
            assert room, f"a row before the first room: {line}"
            files[f"{room}{row[1]}.py"] += 1
        else:
            assert not line.startswith(("| `", "##")), f"not understood: {line}"
    return files


def test_every_module_has_one_line() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    found = documented()
    problems = [
        *(f"{file}: no line; write one into its room's table" for file in files - set(found)),
        *(f"{file}: no such module; move or delete its line" for file in set(found) - files),
        *(f"{file}: {count} lines" for file, count in found.items() if count > 1),
    ]
    assert not problems, "\n".join(["docs/modules.md:", *sorted(problems)])
