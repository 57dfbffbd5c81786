"""A wall that no import contract can express."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]

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
