"""docs/logs.md lists every event of the code with its level and fields, and no other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache

import pytest

from tests.support.repository import ROOT

TEXT = (ROOT / "docs" / "logs.md").read_text()

# The heading of each table, and the packages whose events are in it.
TABLES = {
    "At the relay": ["relay_server"],
    "At the agent": ["relay_agent"],
    "At both": ["protocol"],
}
# Functions that log, and where the name of the event stands among their arguments. The level is the
# argument before it.
TELLERS = {"event": 2, "failure": 1, "_tell_failure": 1}
# Where that is no literal: a teller itself, and one that takes it from a table of its module.
PASSED_ON = {
    ("relay_agent/link/attach_loop.py", "name"),
    ("relay_server/guard/waiting_line.py", "one"),
    ("relay_server/guard/waiting_line.py", "many"),
}
NAME_TABLES = {
    ("relay_server/guard/waiting_line.py", "_REFUSED"),
    ("relay_server/guard/waiting_line.py", "_EVICTED"),
}


@dataclass
class Told:
    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)


def documented(heading: str) -> dict[str, Told]:
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| ([\w, ]+) \|([\w, ]*)\| \S.* \|$", section, re.M)
    assert len(rows) == section.count("\n| `"), "a row is not understood"
    names = [name for name, _, _ in rows]
    assert len(names) == len(set(names))
    return {
        name: Told(set(levels.split(", ")), set(filter(None, fields.strip().split(", "))))
        for name, levels, fields in rows
    }


@cache
def in_code(package: str) -> dict[str, Told]:
    found: dict[str, Told] = defaultdict(Told)
    for path in sorted((ROOT / package).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(function) | ast.Attribute(attr=function)):
                    if function in TELLERS and file != "protocol/process/logs.py":
                        _note_call(found, file, node, function)
                case ast.AnnAssign(target=ast.Name(table), value=ast.Tuple() as names):
                    if (file, table) in NAME_TABLES:
                        for name in ast.literal_eval(names):
                            found[name].levels.add("info")
    return dict(found)


def _note_call(found: dict[str, Told], file: str, call: ast.Call, function: str) -> None:
    if not call.args:  # a method of somebody else's
        return
    name = call.args[TELLERS[function]]
    if isinstance(name, ast.Name):
        assert (file, name.id) in PASSED_ON, f"{file}:{call.lineno}"
        return
    told = found[ast.literal_eval(name)]
    told.fields |= {one.arg for one in call.keywords if one.arg is not None}
    if function == "failure":
        told.levels.add("error")
        told.fields.add("traceback")
    else:
        level = ast.unparse(call.args[TELLERS[function] - 1])
        told.levels |= {one.lower() for one in re.findall(r"logging\.([A-Z]+)", level)}


@pytest.mark.parametrize("heading", TABLES)
def test_every_event_is_listed_and_no_other(heading: str) -> None:
    code = {name for package in TABLES[heading] for name in in_code(package)}
    both = set(in_code("relay_server")) & set(in_code("relay_agent"))
    listed = set(documented(heading))
    if heading == "At both":
        # What is alike on both sides is told of once; `log` is what libraries say.
        assert listed - code - both == {"log"}
        assert code <= listed
    else:
        assert listed <= code
        assert code - listed <= set(documented("At both"))


@pytest.mark.parametrize("heading", TABLES)
def test_levels_and_fields_are_those_of_the_code(heading: str) -> None:
    packages = {"protocol", *TABLES[heading]}
    if heading == "At both":
        packages.update(*TABLES.values())
    source = "".join(
        path.read_text() for package in packages for path in (ROOT / package).rglob("*.py")
    )
    for name, listed in documented(heading).items():
        for package in packages:
            told = in_code(package).get(name, Told())
            assert told.fields <= listed.fields, name
            assert told.levels <= listed.levels, name
        for one in listed.fields:  # not all are where the event is
            assert re.search(rf'\b{one}=|"{one}"', source), (name, one)
