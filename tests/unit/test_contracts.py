"""Walls that no import contract expresses: who dials, and what tests import."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.repository import ROOT

# What makes a connection, by the last part of its name.
DIALS = {"connect", "connect_ex", "create_connection", "open_tcp_stream", "open_unix_socket"}


def test_the_relay_dials_nobody() -> None:
    """What it opens is its database. Commands of the owner's ask its control socket, and one, which
    the running relay is no part of, tries the addresses that the owner named."""
    calls = {
        f"{path.relative_to(ROOT)}: {ast.unparse(node.func)}"
        for package in ("relay_server", "protocol")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in DIALS
    }
    assert calls == {
        "relay_server/registry/database.py: sqlite3.connect",
        "protocol/process/control/client.py: sock.connect",
        "relay_server/doctor/host.py: trio.open_tcp_stream",
    }
    assert "socket.AF_UNIX" in (ROOT / "protocol/process/control/client.py").read_text()


def imported(path: Path) -> Iterator[str]:
    """The modules that `path` imports, by absolute names; those may be of what is in them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = ".".join(path.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (source, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


# Programs that start by themselves, each with a test that starts them.
PROGRAMS = ("tests.selection", "tests.fuzz")


def test_tests_import_no_tests_and_no_benchmarks() -> None:
    """What they share is in `tests/support`, which knows none of them."""
    folders = ("tests", "benchmarks", "deploy", "protocol", "relay_server", "relay_agent")
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for name in imported(path)
        if name.startswith(("tests.", "benchmarks."))
        and not name.startswith(("tests.support.", *PROGRAMS))
        and not (folder == "benchmarks" and name.startswith("benchmarks."))
    ]
    assert wrong == []
    tests_in_support = [
        path
        for path in (ROOT / "tests/support").rglob("*.py")
        if path.name.startswith("test_") or path.name == "conftest.py"
    ]
    assert tests_in_support == []


def test_the_demo_needs_nothing_but_the_standard_library() -> None:
    """It starts before anything is installed, and says what is missing."""
    found, new = set[str](), {"deploy.demo"}
    while new:
        found |= new
        names = {name for module in new for name in imported(file_of(module))}
        new = {module for name in names if (module := known(name))} - found
    outside = {
        name.partition(".")[0]
        for module in found
        for name in imported(file_of(module))
        if not known(name)
    }
    assert outside <= set(sys.stdlib_module_names)


def file_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def known(name: str) -> str:
    """The module of ours that `name` is or is in, if any."""
    parents = (name, name.rpartition(".")[0])
    return next((one for one in parents if one and file_of(one).exists()), "")
