"""The registry's file, its disk and other processes; what is in it: test_registry."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.process.state import StateError, StateFolder
from relay_server.registry.database import SCHEMA_VERSION, _is_full, scalar
from relay_server.registry.registry import REGISTRY_FILE, Registry
from tests.support.registry import (
    SOME,
    enrol,
    invite,
    invite_many,
    key,
    token,
)

NOBODY = 65534
ROOT = os.geteuid() == 0


# Two processes at once

WRITE = """
import sys
from pathlib import Path
from protocol.process.state import StateFolder
from relay_server.registry.registry import Registry
folder, first = Path(sys.argv[1]), int(sys.argv[2])
state = StateFolder(folder)
sys.stdin.readline()
for number in range(first, first + 20):
    with Registry(state) as registry:
        token = bytes([number]) * 16
        registry.invite(f"a{number}", token, now=0, lifetime=1, port_range=range(1, 99))
"""


def test_many_processes_open_and_write_at_once(state: StateFolder) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, state.path, str(first)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for first in (0, 20, 40)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    with Registry(state) as registry:
        invited = registry.invitations()
    assert len(invited) == 60
    assert sorted(one.ports[0] for one in invited) == list(range(1, 61))


def test_a_writer_that_hangs_is_not_waited_for_without_end(state: StateFolder) -> None:
    with Registry(state, busy_timeout=0.01) as registry:
        agent = enrol(registry, "home", 1)
        other = sqlite3.connect(state.path / REGISTRY_FILE, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert registry.agent_by_key(key(1)) == agent  # readers do not wait at all
        with pytest.raises(StateError, match=r"another process keeps it locked$"):
            registry.revoke("home", 0.0)
        other.close()
        registry.revoke("home", 0.0)


# What may be wrong with the file


def damaged(state: StateFolder) -> str:
    with pytest.raises(StateError) as caught:
        Registry(state)
    line = str(caught.value)
    assert line.startswith(f"{state.path / REGISTRY_FILE}: ")
    assert "\n" not in line
    return line


def test_what_is_no_database_is_refused_and_left_alone(state: StateFolder) -> None:
    state.claim(REGISTRY_FILE).write_bytes(b"no database, whatever its name says" * 99)
    before = (state.path / REGISTRY_FILE).read_bytes()
    assert "damaged, or not a database; put back a copy" in damaged(state)
    assert (state.path / REGISTRY_FILE).read_bytes() == before


@pytest.mark.parametrize("page", [1, 2, 3, 4])
def test_a_damaged_page_is_noticed_at_the_start(state: StateFolder, page: int) -> None:
    with Registry(state) as registry:
        enrol(registry, "home", 1)
    with (state.path / REGISTRY_FILE).open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\xa5" * 4096)
    assert "damaged" in damaged(state)


def test_a_file_cut_short_is_noticed_at_the_start(state: StateFolder) -> None:
    with Registry(state) as registry:
        enrol(registry, "home", 1)
    os.truncate(state.path / REGISTRY_FILE, 4096 * 2)
    assert "damaged" in damaged(state)


def test_another_programs_database_is_refused(state: StateFolder) -> None:
    with sqlite3.connect(state.claim(REGISTRY_FILE)) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    assert "this is another program's database" in damaged(state)


def change(state: StateFolder, *statements: str) -> None:
    with sqlite3.connect(state.path / REGISTRY_FILE) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def schema_of(state: StateFolder) -> int:
    with sqlite3.connect(state.path / REGISTRY_FILE) as db:
        version: int = scalar(db, "PRAGMA user_version")
    db.close()
    return version


NEWER = f"PRAGMA user_version = {SCHEMA_VERSION + 1}"
# What makes a new registry one of an older schema.
TO_SCHEMA = {
    3: ("DROP INDEX ports_by_agent", "DELETE FROM settings"),
    2: (
        "ALTER TABLE agents DROP COLUMN relay_key",
        "ALTER TABLE invitations DROP COLUMN relay_key",
    ),
    1: ("ALTER TABLE ports DROP COLUMN allow", "ALTER TABLE ports DROP COLUMN deny"),
}


def make_older(state: StateFolder, schema: int) -> None:
    for one in range(schema_of(state) - 1, schema - 1, -1):
        change(state, *TO_SCHEMA[one], f"PRAGMA user_version = {one}")


@pytest.mark.parametrize(
    "usable_by",
    [
        "DELETE FROM settings",
        f"UPDATE settings SET value = {SCHEMA_VERSION + 1} WHERE key = 'usable_by'",
    ],
)
def test_a_newer_schema_is_refused(state: StateFolder, usable_by: str) -> None:
    Registry(state).close()
    change(state, NEWER, usable_by)
    assert (
        f"newer relay-server (schema {SCHEMA_VERSION + 1}, this one knows {SCHEMA_VERSION});"
        " update this one"
    ) in damaged(state)


def test_a_newer_schema_that_this_program_can_use_is_used_as_it_is(state: StateFolder) -> None:
    """The way back to the version before, after one that only added to the schema."""
    with Registry(state) as registry:
        agent = enrol(registry, "home", 1)
    change(state, NEWER)
    with Registry(state, migrate=True) as registry:
        assert registry.agents() == [agent]
    assert schema_of(state) == SCHEMA_VERSION + 1


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_the_relay_brings_an_older_registry_up_to_date(state: StateFolder, schema: int) -> None:
    with Registry(state) as registry:
        enrol(registry, "home", 1, 9000, 80)
    make_older(state, schema)
    with Registry(state, migrate=True) as registry:
        agent = registry.agent("home")
        assert agent is not None
        assert (agent.ports, agent.admissions) == ((9000, 80), ())
        registry.admit("home", SOME)
    assert schema_of(state) == SCHEMA_VERSION
    with Registry(state) as registry:
        assert registry.agent("home") == dataclasses.replace(
            agent, admissions=((9000, SOME), (80, SOME))
        )
        assert scalar(registry._reader, "SELECT value FROM settings WHERE key = 'usable_by'") == "3"


def test_agents_and_invitations_of_an_older_registry_count_as_behind(state: StateFolder) -> None:
    with Registry(state) as registry:
        enrol(registry, "home", 1)
        invite(registry, "guest", 2)
    make_older(state, 2)
    with Registry(state, migrate=True) as registry:
        assert registry.behind(b"new") == ["home"]
        assert registry.invited_behind(b"new", 0) == ["guest"]
        assert registry.redeem(token(2), key(2), 0).name == "guest"
        assert registry.behind(b"new") == ["guest", "home"]


def test_a_command_leaves_an_older_schema_alone(state: StateFolder) -> None:
    """The relay of that version may be running."""
    with Registry(state) as registry:
        agent = enrol(registry, "home", 1, 9000)
    make_older(state, 3)
    with Registry(state) as registry:
        assert registry.agents() == [agent]
        invite(registry, "cabin", 2)
    assert schema_of(state) == 3
    make_older(state, 2)
    assert "older relay-server (schema 2, this one needs 3); restart the relay" in damaged(state)
    assert schema_of(state) == 2


def test_a_version_that_never_was_is_damage(state: StateFolder) -> None:
    Registry(state).close()
    change(state, "PRAGMA user_version = 0")
    assert "damaged" in damaged(state)


def test_the_ports_of_all_agents_take_one_query_by_an_index(registry: Registry) -> None:
    for number in range(20):
        enrol(registry, f"a{number}", number, 9000 + number)
    asked: list[str] = []
    registry._reader.set_trace_callback(asked.append)
    assert len(registry.agents()) == 20
    assert len(asked) == 2
    del asked[:]
    assert registry.agent_by_key(key(7)) is not None
    plans = [registry._reader.execute(f"EXPLAIN QUERY PLAN {one}").fetchall() for one in asked[:2]]
    assert not [step for plan in plans for *_, step in plan if step.startswith("SCAN")]


def test_our_own_wrong_sql_is_no_fault_of_the_file(registry: Registry, state: StateFolder) -> None:
    with sqlite3.connect(state.path / REGISTRY_FILE) as db:
        db.execute("ALTER TABLE agents RENAME TO gone")
    db.close()
    with pytest.raises(sqlite3.OperationalError):
        registry.agents()
    with pytest.raises(sqlite3.IntegrityError), registry._change() as change:
        change.execute("INSERT INTO ports VALUES (1, 'nobody', 0, '[]', '[]')")
    registry.close()
    with pytest.raises(sqlite3.ProgrammingError):
        registry.agents()


def test_a_file_in_the_place_of_a_database_must_be_ordinary(state: StateFolder) -> None:
    (state.path / REGISTRY_FILE).symlink_to("/etc/passwd")
    assert "expected an ordinary file" in damaged(state)


@pytest.mark.parametrize(
    ("code", "full", "said"),
    [
        (sqlite3.SQLITE_FULL, False, "no space left on the disk"),
        (sqlite3.SQLITE_IOERR_WRITE, True, "no space left on the disk"),
        (sqlite3.SQLITE_IOERR_WRITE, False, "the disk fails: odd"),
        (sqlite3.SQLITE_CANTOPEN, True, "no space left on the disk"),
        (sqlite3.SQLITE_CANTOPEN, False, "cannot be used by this user: odd; its folder's owner"),
        (sqlite3.SQLITE_READONLY, False, "cannot be used by this user"),
    ],
)
def test_errors_of_the_disk(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, code: int, full: bool, said: str
) -> None:
    error = sqlite3.OperationalError("odd")
    error.sqlite_errorcode = code
    monkeypatch.setattr("relay_server.registry.database._is_full", lambda _: full)
    with pytest.raises(StateError, match=said), registry._errors():
        raise error


def test_a_failed_change_leaves_nothing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = registry._connect

    def small(timeout: float) -> sqlite3.Connection:
        db = connect(timeout)
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
        return db

    monkeypatch.setattr(registry, "_connect", small)
    with pytest.raises(StateError, match=r"no space left on the disk$"):
        invite_many(registry)
    names = [one.name for one in registry.invitations()]
    assert names
    for name in names:
        agent = registry.agent(name)
        assert agent is not None
        assert len(agent.ports) == 1
    assert registry.agent(f"name-{len(names) + 2}") is None
    monkeypatch.setattr(registry, "_connect", connect)
    enrol(registry, "home", 251, 1)


def test_a_folder_that_went_away(registry: Registry, state: StateFolder) -> None:
    shutil.rmtree(state.path)
    with pytest.raises(StateError, match=r"cannot be used by this user"):
        invite(registry, "home", 1)


def test_all_files_are_for_the_owner_alone(registry: Registry, state: StateFolder) -> None:
    invite(registry, "home", 1)
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.path.iterdir()}
    assert files == {
        REGISTRY_FILE: 0o600,
        f"{REGISTRY_FILE}-wal": 0o600,
        f"{REGISTRY_FILE}-shm": 0o600,
    }


# As root, beside a server under its own user.

if ROOT:
    SERVE = """
import os, sys
from pathlib import Path
from protocol.process.state import StateFolder
from relay_server.registry.registry import Registry
os.setgid(65534)
os.setuid(65534)
state = StateFolder(Path(sys.argv[1]))
state.ensure()
with Registry(state) as registry:
    print("open", flush=True)
    sys.stdin.readline()
    registry.redeem(b"\\1" * 16, b"\\1" * 32, 0.0)
    print(*(agent.name for agent in registry.agents()), flush=True)
    sys.stdin.readline()
"""

    @pytest.fixture
    def foreign(state: StateFolder) -> StateFolder:
        os.chown(state.path, NOBODY, NOBODY)
        above = state.path.parent
        while above.stat().st_uid == 0 and above != Path("/tmp"):
            above.chmod(above.stat().st_mode | 0o011)
            above = above.parent
        return state

    def owners(state: StateFolder) -> set[tuple[int, int]]:
        return {(file.stat().st_uid, file.stat().st_gid) for file in state.path.iterdir()}

    def test_root_and_a_server_under_its_own_user(foreign: StateFolder) -> None:
        with Registry(foreign) as registry:  # root comes first and makes everything
            invite(registry, "home", 1)
            assert len(list(foreign.path.iterdir())) == 3
            assert owners(foreign) == {(NOBODY, NOBODY)}
        with subprocess.Popen(
            [sys.executable, "-c", SERVE, foreign.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            assert server.stdout.readline() == b"open\n"
            with Registry(foreign) as registry:  # both at once
                invite(registry, "office", 2)
                server.stdin.write(b"\n")
                server.stdin.flush()
                assert server.stdout.readline() == b"home\n"
                assert registry.agent_by_key(b"\1" * 32) is not None
                assert owners(foreign) == {(NOBODY, NOBODY)}
            server.stdin.close()
        assert server.returncode == 0
        with Registry(foreign) as registry:  # root opens what the server left
            registry.revoke("home", 0.0)
            assert owners(foreign) == {(NOBODY, NOBODY)}

    def test_a_database_of_roots_in_a_foreign_folder_is_named(foreign: StateFolder) -> None:
        (foreign.path / REGISTRY_FILE).touch(mode=0o600)
        with subprocess.Popen(
            [sys.executable, "-c", SERVE, foreign.path], stderr=subprocess.PIPE
        ) as server:
            assert server.stderr is not None
            last = server.stderr.read().decode().splitlines()[-1]
        assert last.endswith("has no access; it belongs to root")


# On a disk of its own, where one may be mounted; the same errors are made up above.

if ROOT and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0:

    @pytest.fixture
    def disk(tmp_path: Path) -> Iterator[StateFolder]:
        path = tmp_path / "disk"
        path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", str(path)]
        subprocess.run(mount, check=True)
        yield StateFolder(path)
        subprocess.run(["umount", "--lazy", str(path)], check=True)

    def fill(state: StateFolder) -> Path:
        filler = state.path / "filler"
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"x" * 4096)
                except OSError:
                    return filler

    def test_a_disk_that_fills_up_while_we_write(disk: StateFolder) -> None:
        with Registry(disk) as registry:
            agent = enrol(registry, "home", 1)
            filler = fill(disk)
            with pytest.raises(StateError, match=r"no space left on the disk$"):
                invite_many(registry)
            assert registry.agent_by_key(key(1)) == agent
            filler.unlink()
            invite(registry, "office", 250)
        with Registry(disk) as registry:
            assert registry.agent_by_key(key(1)) == agent

    def test_a_disk_that_is_full_at_the_start(disk: StateFolder) -> None:
        filler = fill(disk)
        with pytest.raises(StateError, match=r"no space left on the disk$"):
            Registry(disk)
        filler.unlink()
        with Registry(disk) as registry:
            enrol(registry, "home", 1)
        filler = fill(disk)
        with pytest.raises(StateError, match=r"no space left on the disk$"):
            Registry(disk)
        filler.unlink()
        with Registry(disk) as registry:
            assert len(registry.agents()) == 1

    def test_a_read_only_disk(disk: StateFolder) -> None:
        with Registry(disk) as registry:
            enrol(registry, "home", 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk.path)], check=True)
        with pytest.raises(StateError, match=r"on a read-only file system$"):
            Registry(disk)


def test_space_is_not_asked_for_in_vain(tmp_path: Path) -> None:
    assert not _is_full(tmp_path)
    assert not _is_full(tmp_path / "none")
