"""The registry's file: its tables, how older ones become these, and one transaction a change.

SQLite in the state folder, so that the CLI and the server can use it at once. Reading and writing
are apart: one long-lived connection reads, in the thread that opened the database, and never waits
for a writer (WAL); each change is one transaction over a connection of its own, so it may run in a
worker thread while it waits for the disk. A change is there entirely or not at all.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

from protocol.process.state import StateError, StateFolder

SCHEMA_VERSION: Final = 4
# The oldest schema that the statements of this program work on as it is. A command that finds one
# between the two leaves it alone, as a running relay of an older version may be using it.
_WORKS_ON: Final = 3
# The oldest program, by the schema that it knows, that can use what this one makes. A newer schema
# that only adds to an older one leaves this as it is, so that the way back to that program is open.
_USABLE_BY: Final = 3
_APPLICATION_ID: Final = 0x53524C59  # "SRLY": tells our database from somebody else's
# Another process's change takes milliseconds; more means that it hangs, and waiting does not help.
BUSY_TIMEOUT: Final = 5.0

_SCHEMA: Final = """
CREATE TABLE agents (
    name TEXT PRIMARY KEY NOT NULL,
    public_key BLOB UNIQUE,  -- NULL until enrolled
    created REAL NOT NULL,
    enrolled REAL,
    relay_key BLOB  -- the newest of the relay's keys that it is known to have come under
);
CREATE TABLE ports (
    port INTEGER PRIMARY KEY NOT NULL,
    agent TEXT NOT NULL REFERENCES agents (name) ON DELETE CASCADE,
    position INTEGER NOT NULL,  -- the one at 0 is the agent's ssh port
    allow TEXT NOT NULL DEFAULT '[]',  -- JSON: networks that alone may visit, if any
    deny TEXT NOT NULL DEFAULT '[]'  -- JSON: networks that may not
);
CREATE INDEX ports_by_agent ON ports (agent, position);
CREATE TABLE invitations (
    token_hash BLOB PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL NOT NULL,
    public_key BLOB,  -- the key that redeemed it
    relay_key BLOB  -- the relay's key that it carries
);
CREATE UNIQUE INDEX one_pending_each ON invitations (name) WHERE state = 'pending';
CREATE TABLE revoked (
    public_key BLOB PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    revoked REAL NOT NULL
);
CREATE TABLE settings (
    key TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL  -- JSON
);
"""

# What makes a registry of that version one of the next.
_MIGRATIONS: Final = {
    1: (
        "ALTER TABLE ports ADD COLUMN allow TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE ports ADD COLUMN deny TEXT NOT NULL DEFAULT '[]'",
    ),
    2: (
        "ALTER TABLE agents ADD COLUMN relay_key BLOB",
        "ALTER TABLE invitations ADD COLUMN relay_key BLOB",
    ),
    # Without it, each look at an agent's ports reads the ports of all agents.
    3: ("CREATE INDEX ports_by_agent ON ports (agent, position)",),
}
_SAY_USABLE_BY: Final = (
    "INSERT INTO settings VALUES ('usable_by', ?)"
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)


class Database:
    """What `Registry` stands on."""

    def __init__(
        self,
        state: StateFolder,
        file: str,
        *,
        busy_timeout: float = BUSY_TIMEOUT,
        migrate: bool = False,
    ) -> None:
        """Open `file` in `state`, making it if it is missing. Raises StateError.

        `migrate`: bring an older schema up to date. That is for the relay itself when it starts.
        Commands only look, or change what any version understands.
        """
        self._path = state.claim(file)
        self._busy_timeout = busy_timeout
        # One process at a time: switching to WAL does not wait for others as all else does.
        with state.exclusively(), self._errors():
            self._reader = self._connect(busy_timeout)
            try:
                self._prepare(migrate=migrate)
            except BaseException:
                self._reader.close()
                raise

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def snapshot(self) -> bytes:
        """The whole database as it is at one moment, whoever writes."""
        with tempfile.TemporaryDirectory() as folder, self._errors():
            file = Path(folder) / self._path.name
            with contextlib.closing(sqlite3.connect(file)) as copy:
                self._reader.backup(copy)
            return file.read_bytes()

    def check_tables(self) -> None:
        """Raise StateError unless the tables are those of this program, as for a file from outside.

        What makes the database do something by itself, a trigger or a view, is refused with them.
        """
        with contextlib.closing(sqlite3.connect(":memory:")) as fresh, self._errors():
            fresh.executescript(_SCHEMA)
            if _tables(self._reader) != _tables(fresh):
                raise StateError(f"{self._path}: its tables are not those of a relay's registry")

    def _connect(self, timeout: float) -> sqlite3.Connection:
        # Transactions are begun and ended by our own hand.
        db = sqlite3.connect(self._path, timeout=timeout, isolation_level=None)
        try:
            db.execute("PRAGMA foreign_keys = ON")
            # An agent that was told it is enrolled stays so, also if the power fails.
            db.execute("PRAGMA synchronous = FULL")
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, *, migrate: bool) -> None:
        db = self._reader
        version = scalar(db, "PRAGMA user_version")
        if scalar(db, "SELECT count(*) FROM sqlite_master") == 0 and version == 0:
            db.execute("PRAGMA journal_mode = WAL")
            with self._change() as change:
                for statement in _SCHEMA.split(";"):
                    change.execute(statement)
                change.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                _mark(change)
        elif scalar(db, "PRAGMA application_id") != _APPLICATION_ID:
            raise StateError(f"{self._path}: this is another program's database")
        elif version > SCHEMA_VERSION:
            self._check_usable(version)
        elif version < min(_MIGRATIONS):
            raise StateError(_damaged(self._path))
        elif version < SCHEMA_VERSION and migrate:
            with self._change() as change:
                for since in range(version, SCHEMA_VERSION):
                    for statement in _MIGRATIONS[since]:
                        change.execute(statement)
                _mark(change)
        elif version < _WORKS_ON:
            raise StateError(
                f"{self._path}: written by an older relay-server (schema {version}, this one needs"
                f" {_WORKS_ON}); restart the relay with this version first"
            )
        # A page that rotted on the disk is better found now than by an agent that dials in. It is
        # small: a few milliseconds for thousands of agents.
        if scalar(db, "PRAGMA quick_check(1)") != "ok":
            raise StateError(_damaged(self._path))

    def _check_usable(self, version: int) -> None:
        """Raise StateError unless whoever made the newer schema left it usable by this program."""
        query = "SELECT value FROM settings WHERE key = 'usable_by'"
        if int(scalar(self._reader, query) or version) > SCHEMA_VERSION:
            raise StateError(
                f"{self._path}: written by a newer relay-server (schema {version}, this one knows"
                f" {SCHEMA_VERSION}); update this one"
            )

    @contextlib.contextmanager
    def _change(self, timeout: float | None = None) -> Iterator[sqlite3.Connection]:
        timeout = self._busy_timeout if timeout is None else timeout
        with self._errors(), contextlib.closing(self._connect(timeout)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
            # Closing undoes whatever did not come as far as this.

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What SQLite says about the disk and the file becomes one line; bugs stay bugs."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            # The subclasses but one tell of wrong SQL and broken constraints.
            if type(error) not in (sqlite3.DatabaseError, sqlite3.OperationalError):
                raise
            reason = _explain(self._path, error)
            if reason is None:
                raise
            raise StateError(reason) from None


def _mark(change: sqlite3.Connection) -> None:
    """Say which schema this is now, and who can use it."""
    change.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    change.execute(_SAY_USABLE_BY, (str(_USABLE_BY),))


def _tables(db: sqlite3.Connection) -> set[tuple[object, ...]]:
    """The columns of all tables, with their types, and whatever there is besides tables."""
    found: set[tuple[object, ...]] = set()
    for kind, name in db.execute("SELECT type, name FROM sqlite_master WHERE type != 'index'"):
        columns = db.execute("SELECT name, type FROM pragma_table_info(?)", (name,)).fetchall()
        found.update((kind, name, *column) for column in columns or [()])
    return found


def restore(state: StateFolder, name: str, snapshot: bytes) -> None:
    """Make what `Database.snapshot` gave the database `name` in `state`. Raises StateError."""
    file = state.claim(name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / name
        copy.write_bytes(snapshot)
        try:
            with (
                contextlib.closing(sqlite3.connect(copy)) as source,
                contextlib.closing(sqlite3.connect(file)) as target,
            ):
                source.backup(target)
                target.execute("PRAGMA journal_mode = WAL")
        except sqlite3.DatabaseError as error:
            raise StateError(_explain(file, error) or f"{file}: cannot be written") from None


def _explain(path: Path, error: sqlite3.DatabaseError) -> str | None:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
    match code:
        case sqlite3.SQLITE_FULL:
            return f"{path}: no space left on the disk"
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return _damaged(path)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{path}: another process keeps it locked"
        case sqlite3.SQLITE_IOERR if _is_full(path):
            # A full disk is noticed in many places besides the one that says so.
            return f"{path}: no space left on the disk"
        case sqlite3.SQLITE_IOERR:
            return f"{path}: the disk fails: {error}"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            if _is_full(path):
                return f"{path}: no space left on the disk"
            return (
                f"{path}: cannot be used by this user: {error};"
                f" its folder's owner must own {path.name} and {path.name}-*"
            )
    return None


def _damaged(path: Path) -> str:
    return (
        f"{path}: damaged, or not a database; put back a copy, or move it away and invite"
        " every agent again"
    )


def _is_full(path: Path) -> bool:
    try:
        space = os.statvfs(path)
    except OSError:
        return False
    return space.f_bavail == 0


def scalar(db: sqlite3.Connection, query: str, arguments: Sequence[object] = ()) -> Any:
    """The first column of the first row, None if there is none."""
    row = db.execute(query, arguments).fetchone()
    return None if row is None else row[0]
