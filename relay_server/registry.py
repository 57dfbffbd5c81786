"""The registry: which keys are whose, which ports they may publish, who is invited.

SQLite in the state folder, so that the CLI and the server can use it at once. Reading and writing
are apart: one long-lived connection reads, in the thread that opened the registry, and never waits
for a writer (WAL); each change is one transaction over a connection of its own, so it may run in a
worker thread while it waits for the disk. A change is there entirely or not at all.

An invitation's life, where `pending` is the only state that can still enrol somebody:

    ==========  ==========================================  ==========================
    state       comes from                                  a token of it is answered
    ==========  ==========================================  ==========================
    pending     invite                                      enrolled; expired if late
    redeemed    the first key that shows the token          enrolled, for that key only
    cancelled   cancel, revoke                              refused
    replaced    another invite for the same name            refused
    expired     its ports went to somebody else             refused
    ==========  ==========================================  ==========================

An agent without a key is a name that holds ports for its pending invitation. Once that expired, the
name keeps them only until somebody else needs them.

Time is the relay's clock, in seconds since the epoch, and an argument.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from protocol.process.address import HostPort
from protocol.process.state import StateError, StateFolder
from relay_server.networks import Admission, Networks, parse_networks

FILE: Final = "registry.db"
SCHEMA_VERSION: Final = 3
_APPLICATION_ID: Final = 0x53524C59  # "SRLY": tells our database from somebody else's

# Names go into logs and tables of 80 columns.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
# What WELCOME can tell an agent about.
MAX_PORTS: Final = 256
# For each port and list: what a person keeps by hand. A long list of the world's bad networks is
# for server.toml, or better for a firewall.
MAX_NETWORKS: Final = 256
# Invitations that may still enrol somebody: a fleet of 2,000 invited at once, twice. Only the state
# folder's owner invites, so this holds back a script gone wild, and nobody's guess: among so many
# tokens of 128 bits one try in 2^116 hits.
MAX_OUTSTANDING: Final = 4096
# Another process's change takes milliseconds; more means that it hangs, and waiting does not help.
BUSY_TIMEOUT: Final = 5.0
# For a change that the server makes between two turns of its loop, where every link waits for it.
_BRIEF_TIMEOUT: Final = 0.2
# Between two keys of one agent: each leaves a revoked one behind, for ever. At this rate a rogue
# agent fills a megabyte a day; a person does not notice it.
_BETWEEN_SUCCESSORS: Final = 10.0
# How long a token that enrolled nobody still gets the true reason for its refusal.
_REMEMBER_UNUSED: Final = 30 * 86400.0

_UNKNOWN: Final = "this invitation is unknown here; ask for a new one"
_EXPIRED: Final = "this invitation has expired; ask for a new one"

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
}


class Refused(Exception):  # noqa: N818 - an answer, not a defect
    """What was asked for contradicts what is registered; the text is one line for the user."""


class TokenRefused(Exception):  # noqa: N818 - an answer, not a defect
    """The token enrols nobody (any more); the text is one line for whoever showed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A name and what belongs to it. `public_key` and `enrolled` are None until it enrols."""

    name: str
    public_key: bytes | None
    ports: tuple[int, ...]  # the first is its ssh port
    created: float
    enrolled: float | None
    relay_key: bytes | None = None  # the newest of the relay's that it is known to have come under
    admissions: tuple[tuple[int, Admission], ...] = ()  # of those ports that do not admit all

    def admission(self, port: int) -> Admission:
        return dict(self.admissions).get(port, Admission())


@dataclass(frozen=True, slots=True, kw_only=True)
class Invited:
    """A pending invitation. Its token is not here: the registry knows only the hash."""

    name: str
    ports: tuple[int, ...]
    created: float
    expires: float


def parse_name(text: str) -> str:
    """Check an agent's name. Raises ValueError with what is expected."""
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"expected a name of 1 to 32 letters, digits, '.', '_' or '-', not {text!r}"
        )
    return text


class Registry:
    def __init__(self, state: StateFolder, *, busy_timeout: float = BUSY_TIMEOUT) -> None:
        """Open the registry in `state`, making it if it is missing. Raises StateError."""
        self._path = state.claim(FILE)
        self._busy_timeout = busy_timeout
        # One process at a time: switching to WAL does not wait for others as all else does.
        with state.exclusively(), self._errors():
            self._reader = self._connect(busy_timeout)
            try:
                self._prepare()
            except BaseException:
                self._reader.close()
                raise

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def agents(self) -> list[Agent]:
        """The enrolled agents, by name."""
        with self._errors():
            return _agents(self._reader, "public_key IS NOT NULL", ())

    def enrolled(self) -> list[str]:
        """Their names alone, which costs a fraction."""
        with self._errors():
            rows = self._reader.execute(
                "SELECT name FROM agents WHERE public_key IS NOT NULL ORDER BY name"
            )
            return [name for (name,) in rows]

    def agent(self, name: str) -> Agent | None:
        """The agent of that name, also one that is only invited."""
        with self._errors():
            return _agent(self._reader, name)

    def agent_by_key(self, public_key: bytes) -> Agent | None:
        with self._errors():
            found = _agents(self._reader, "public_key = ?", (public_key,))
            return found[0] if found else None

    def revoked_name(self, public_key: bytes) -> str | None:
        """The name that a revoked key had; None for a key that is not revoked."""
        with self._errors():
            return _revoked_name(self._reader, public_key)

    def invitations(self) -> list[Invited]:
        """The pending invitations by name, expired ones too: those still hold their ports."""
        with self._errors():
            rows = self._reader.execute(
                "SELECT name, created, expires FROM invitations WHERE state = 'pending'"
                " ORDER BY name"
            ).fetchall()
            return [
                Invited(
                    name=name,
                    ports=_ports(self._reader, name),
                    created=created,
                    expires=expires,
                )
                for name, created, expires in rows
            ]

    def check_token(self, token: bytes) -> None:
        """Raise TokenRefused for a token that was never given out.

        Asked before `redeem`: guesses cost a look, and neither a write nor a thread.
        """
        with self._errors():
            query = "SELECT 1 FROM invitations WHERE token_hash = ?"
            if _value(self._reader, query, (_hash(token),)) is None:
                raise TokenRefused(_UNKNOWN)

    def change_stamp(self) -> int:
        """A number that differs after each change, by whichever process or thread."""
        with self._errors():
            return int(_value(self._reader, "PRAGMA data_version"))

    def snapshot(self) -> bytes:
        """The whole database as it is at one moment, whoever writes."""
        with tempfile.TemporaryDirectory() as folder, self._errors():
            file = Path(folder) / FILE
            with contextlib.closing(sqlite3.connect(file)) as copy:
                self._reader.backup(copy)
            return file.read_bytes()

    # Changing

    def invite(
        self,
        name: str,
        token: bytes,
        *,
        now: float,
        lifetime: float,
        port_range: range,
        ports: Sequence[int] = (),
        usable: Callable[[int], bool] = lambda port: True,
        admission: Admission | None = None,
        relay_key: bytes | None = None,
    ) -> Invited:
        """Let whoever shows `token` within `lifetime` seconds enrol as `name`.

        `ports` come first. An existing name keeps those it has, since its agent may be serving
        them; a name without any is granted the lowest free port of `port_range` that is `usable`.
        A pending invitation of that name is replaced. `admission`, if given, is that of all its
        ports from now on. `relay_key` is the key that the invitation tells.
        """
        with self._change() as db:
            db.execute(
                "DELETE FROM invitations WHERE state IN ('cancelled', 'replaced', 'expired')"
                " AND expires < ?",
                (now - _REMEMBER_UNUSED,),
            )
            db.execute(
                "INSERT INTO agents (name, created) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (name, now),
            )
            if _outstanding(db, now, besides=name) >= MAX_OUTSTANDING:
                raise Refused(
                    f"{MAX_OUTSTANDING} invitations are outstanding; cancel some, or let them"
                    " expire: see `relay-server invitations`"
                )
            granted = tuple(dict.fromkeys((*ports, *_ports(db, name))))
            if len(granted) > MAX_PORTS:
                raise Refused(f"expected at most {MAX_PORTS} ports, not {len(granted)}")
            granted = granted or (_free_port(db, port_range, usable, now),)
            _grant(db, name, granted, now)
            if admission is not None:
                _admit(db, granted, admission)
            db.execute(
                "UPDATE invitations SET state = 'replaced' WHERE name = ? AND state = 'pending'",
                (name,),
            )
            db.execute(
                "INSERT INTO invitations (token_hash, name, state, created, expires, relay_key)"
                " VALUES (?, ?, 'pending', ?, ?, ?)",
                (_hash(token), name, now, now + lifetime, relay_key),
            )
        return Invited(name=name, ports=granted, created=now, expires=now + lifetime)

    def admit(self, name: str, admission: Admission, ports: Sequence[int] = ()) -> tuple[int, ...]:
        """Change who may visit `ports` of the agent, by default all; tells which those are."""
        with self._change() as db:
            agent = _agent(db, name)
            if agent is None:
                raise Refused(f"there is no agent {name}")
            for port in ports:
                if port not in agent.ports:
                    raise Refused(f"port {port} is not granted to {name}")
            chosen = tuple(dict.fromkeys(ports)) or agent.ports
            _admit(db, chosen, admission)
        return chosen

    def cancel(self, name: str) -> None:
        """Make the pending invitation of `name` worthless; Refused if there is none."""
        with self._change() as db:
            if not _cancel(db, name):
                raise Refused(f"there is no pending invitation for {name}")
            db.execute("DELETE FROM agents WHERE name = ? AND public_key IS NULL", (name,))

    def redeem(self, token: bytes, public_key: bytes, now: float) -> Agent:
        """Enrol the holder of `public_key` by `token`; its name's former key is revoked.

        The token binds to the first key that shows it. That key may show it for ever, so that an
        answer that got lost does no harm. Raises TokenRefused.
        """
        with self._change() as db:
            row = db.execute(
                "SELECT name, state, expires, public_key FROM invitations WHERE token_hash = ?",
                (_hash(token),),
            ).fetchone()
            if row is None:
                raise TokenRefused(_UNKNOWN)
            name, state, expires, bound_key = row
            if _revoked_name(db, public_key) is not None:
                raise TokenRefused("this agent's key was revoked; a new invitation needs a new key")
            match state:
                case "redeemed" if bound_key != public_key:
                    raise TokenRefused("this invitation was used by another agent already")
                case "cancelled" | "replaced":
                    raise TokenRefused(f"this invitation was {state}; ask for a new one")
                case "expired":
                    raise TokenRefused(_EXPIRED)
                case "pending" if now >= expires:
                    raise TokenRefused(_EXPIRED)
                case "pending":
                    _enrol(db, name, public_key, now)
                    db.execute(
                        "UPDATE invitations SET state = 'redeemed', public_key = ?"
                        " WHERE token_hash = ?",
                        (public_key, _hash(token)),
                    )
            agent = _agent(db, name)
        if agent is None or agent.public_key != public_key:
            # Whatever takes a key from an agent revokes it.
            raise StateError(f"{self._path}: damaged: a token without its agent")
        return agent

    def succeed(self, public_key: bytes, successor: bytes, now: float) -> None:
        """The agent with `public_key` has `successor` instead, and its old key is revoked.

        Does not wait for other writers for long. Raises Refused.
        """
        with self._change(_BRIEF_TIMEOUT) as db:
            name = _value(db, "SELECT name FROM agents WHERE public_key = ?", (public_key,))
            if name is None:
                raise Refused("the old key is not an agent's any more")
            holder = _value(db, "SELECT name FROM agents WHERE public_key = ?", (successor,))
            if holder is not None or _revoked_name(db, successor) is not None:
                raise Refused("the new key is, or was, that of an agent here")
            last = _value(
                db, "SELECT max(revoked) FROM revoked WHERE name = ? AND revoked <= ?", (name, now)
            )
            if last is not None and now - last < _BETWEEN_SUCCESSORS:
                raise Refused(f"it had another key {_BETWEEN_SUCCESSORS:g} s ago still")
            _revoke_key(db, public_key, name, now)
            db.execute("UPDATE agents SET public_key = ? WHERE name = ?", (successor, name))
            # So that `join` can be run again with the invitation it was run with.
            db.execute(
                "UPDATE invitations SET public_key = ? WHERE public_key = ?",
                (successor, public_key),
            )

    def revoke(self, name: str, now: float) -> None:
        """Forget the agent `name` with its ports and invitation, and refuse its key for ever."""
        with self._change() as db:
            agent = _agent(db, name)
            if agent is None:
                raise Refused(f"there is no agent {name}")
            if agent.public_key is not None:
                _revoke_key(db, agent.public_key, name, now)
            _cancel(db, name)
            db.execute("DELETE FROM agents WHERE name = ?", (name,))

    # Who knows which key of the relay

    def behind(self, relay_key: bytes) -> list[str]:
        """The enrolled agents that are not known to have come under `relay_key`."""
        with self._errors():
            rows = self._reader.execute(
                "SELECT name FROM agents WHERE public_key IS NOT NULL AND relay_key IS NOT ?"
                " ORDER BY name",
                (relay_key,),
            )
            return [name for (name,) in rows]

    def invited_behind(self, relay_key: bytes, now: float) -> list[str]:
        """The names whose invitation can still be used and carries another key of the relay."""
        with self._errors():
            rows = self._reader.execute(
                "SELECT name FROM invitations"
                " WHERE state = 'pending' AND expires > ? AND relay_key IS NOT ? ORDER BY name",
                (now, relay_key),
            )
            return [name for (name,) in rows]

    def follow(
        self, name: str, public_key: bytes, relay_key: bytes, successor: bytes | None = None
    ) -> None:
        """The agent `name` has come, with this key of its own, under `relay_key`.

        It may have the `successor` to its own key by now, which it came with.
        """
        with self._change() as db:
            db.execute(
                "UPDATE agents SET relay_key = ? WHERE name = ? AND public_key IN (?, ?)",
                (relay_key, name, public_key, successor),
            )

    # What `run` was told and `invite` needs to know

    def hosts(self) -> tuple[HostPort, ...]:
        """Where agents dial in, in that order."""
        return tuple(HostPort(host, port) for host, port in self._recall("hosts", []))

    def remember_hosts(self, hosts: Sequence[HostPort]) -> None:
        self._remember("hosts", [[one.host, one.port] for one in hosts])

    def announced(self) -> tuple[HostPort, ...]:
        """Where else agents are told to look for the relay."""
        return tuple(HostPort(host, port) for host, port in self._recall("announced", []))

    def announce(self, hosts: Sequence[HostPort]) -> None:
        self._remember("announced", [[one.host, one.port] for one in hosts])

    def link_ports(self) -> tuple[int, ...]:
        """The ports on which the server itself listens for agents."""
        return tuple(self._recall("link_ports", []))

    def remember_link_ports(self, ports: Sequence[int]) -> None:
        self._remember("link_ports", list(ports))

    def port_range(self) -> range | None:
        """Where ports are taken from for agents that are invited without one."""
        bounds = self._recall("port_range", None)
        return None if bounds is None else range(*bounds)

    def remember_port_range(self, ports: range) -> None:
        self._remember("port_range", [ports.start, ports.stop])

    def relay_key(self) -> bytes | None:
        """The public half of the current key, if it was ever rotated."""
        text = self._recall("relay_key", None)
        return None if text is None else bytes.fromhex(text)

    def remember_relay_key(self, public: bytes) -> None:
        """Wakes a running server too, also where it cannot be asked."""
        self._remember("relay_key", public.hex())

    def _recall(self, key: str, default: Any) -> Any:
        with self._errors():
            text = _value(self._reader, "SELECT value FROM settings WHERE key = ?", (key,))
        return default if text is None else json.loads(text)

    def _remember(self, key: str, value: object) -> None:
        with self._change() as db:
            # What is there already must not wear the disk or wake the server.
            db.execute(
                "INSERT INTO settings VALUES (?, ?) ON CONFLICT (key) DO UPDATE"
                " SET value = excluded.value WHERE value IS NOT excluded.value",
                (key, json.dumps(value)),
            )

    # SQLite

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

    def _prepare(self) -> None:
        db = self._reader
        version = _value(db, "PRAGMA user_version")
        if _value(db, "SELECT count(*) FROM sqlite_master") == 0 and version == 0:
            db.execute("PRAGMA journal_mode = WAL")
            with self._change() as change:
                for statement in _SCHEMA.split(";"):
                    change.execute(statement)
                change.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                change.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif _value(db, "PRAGMA application_id") != _APPLICATION_ID:
            raise StateError(f"{self._path}: this is another program's database")
        elif version in _MIGRATIONS:
            with self._change() as change:
                for since in range(version, SCHEMA_VERSION):
                    for statement in _MIGRATIONS[since]:
                        change.execute(statement)
                change.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise StateError(
                f"{self._path}: written by a newer relay-server (schema {version}, this one knows"
                f" {SCHEMA_VERSION}); update this one"
            )
        # A page that rotted on the disk is better found now than by an agent that dials in. It is
        # small: a few milliseconds for thousands of agents.
        if _value(db, "PRAGMA quick_check(1)") != "ok":
            raise StateError(_damaged(self._path))

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


def restore(state: StateFolder, snapshot: bytes) -> None:
    """Make what `Registry.snapshot` gave the registry in `state`. Raises StateError."""
    file = state.claim(FILE)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / FILE
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


def _value(db: sqlite3.Connection, query: str, arguments: Sequence[object] = ()) -> Any:
    row = db.execute(query, arguments).fetchone()
    return None if row is None else row[0]


def _hash(token: bytes) -> bytes:
    # A token is random, so a plain hash cannot be searched.
    return hashlib.sha256(token).digest()


def _agents(db: sqlite3.Connection, where: str, arguments: Sequence[object]) -> list[Agent]:
    columns = "name, public_key, created, enrolled, relay_key"
    rows = db.execute(
        f"SELECT {columns} FROM agents WHERE {where} ORDER BY name",  # noqa: S608 - all of it is ours
        arguments,
    ).fetchall()
    return [
        Agent(
            name=name,
            public_key=public_key,
            ports=_ports(db, name),
            created=created,
            enrolled=enrolled,
            admissions=_admissions(db, name),
            relay_key=relay_key,
        )
        for name, public_key, created, enrolled, relay_key in rows
    ]


def _agent(db: sqlite3.Connection, name: str) -> Agent | None:
    found = _agents(db, "name = ?", (name,))
    return found[0] if found else None


def _ports(db: sqlite3.Connection, name: str) -> tuple[int, ...]:
    rows = db.execute("SELECT port FROM ports WHERE agent = ? ORDER BY position", (name,))
    return tuple(port for (port,) in rows)


def _admissions(db: sqlite3.Connection, name: str) -> tuple[tuple[int, Admission], ...]:
    rows = db.execute(
        "SELECT port, allow, deny FROM ports WHERE agent = ? AND (allow, deny) != ('[]', '[]')"
        " ORDER BY position",
        (name,),
    )
    try:
        return tuple(
            (port, Admission(allow=_networks(allow), deny=_networks(deny)))
            for port, allow, deny in rows
        )
    except ValueError as error:  # edited by hand; to guess would be to let somebody in
        raise StateError(f"registry: who may visit {name} cannot be read: {error}") from None


def _networks(text: str) -> Networks:
    return parse_networks(json.loads(text))


def _admit(db: sqlite3.Connection, ports: Sequence[int], admission: Admission) -> None:
    for networks in (admission.allow, admission.deny):
        if len(networks) > MAX_NETWORKS:
            raise Refused(f"expected at most {MAX_NETWORKS} networks, not {len(networks)}")
    allow, deny = (
        json.dumps([str(one) for one in networks]) for networks in (admission.allow, admission.deny)
    )
    for port in ports:
        db.execute("UPDATE ports SET allow = ?, deny = ? WHERE port = ?", (allow, deny, port))


def _revoked_name(db: sqlite3.Connection, public_key: bytes) -> str | None:
    name: str | None = _value(db, "SELECT name FROM revoked WHERE public_key = ?", (public_key,))
    return name


def _revoke_key(db: sqlite3.Connection, public_key: bytes, name: str, now: float) -> None:
    db.execute("INSERT INTO revoked VALUES (?, ?, ?)", (public_key, name, now))


def _cancel(db: sqlite3.Connection, name: str) -> bool:
    cursor = db.execute(
        "UPDATE invitations SET state = 'cancelled' WHERE name = ? AND state = 'pending'", (name,)
    )
    return cursor.rowcount > 0


def _outstanding(db: sqlite3.Connection, now: float, *, besides: str) -> int:
    """How many names other than `besides` are invited, and may still enrol."""
    query = "SELECT count(*) FROM invitations WHERE state = 'pending' AND expires > ? AND name != ?"
    return int(_value(db, query, (now, besides)))


def _enrol(db: sqlite3.Connection, name: str, public_key: bytes, now: float) -> None:
    holder = _value(db, "SELECT name FROM agents WHERE public_key = ?", (public_key,))
    if holder not in (None, name):
        raise TokenRefused(f"this agent is enrolled as {holder} already")
    former = _value(db, "SELECT public_key FROM agents WHERE name = ?", (name,))
    if former not in (None, public_key):
        _revoke_key(db, former, name, now)
    db.execute(
        "UPDATE agents SET public_key = ?, enrolled = ?, relay_key = NULL WHERE name = ?",
        (public_key, now, name),
    )


def _grant(db: sqlite3.Connection, name: str, ports: Sequence[int], now: float) -> None:
    """In that order; those it has already keep what else is known of them."""
    for position, port in enumerate(ports):
        holder = _value(db, "SELECT agent FROM ports WHERE port = ?", (port,))
        if holder not in (None, name) and holder not in _release_lapsed(db, now, (holder,)):
            raise Refused(f"port {port} is granted to {holder}")
        db.execute(
            "INSERT INTO ports (port, agent, position) VALUES (?, ?, ?)"
            " ON CONFLICT (port) DO UPDATE SET position = excluded.position",
            (port, name, position),
        )


def _free_port(
    db: sqlite3.Connection, port_range: range, usable: Callable[[int], bool], now: float
) -> int:
    port = _lowest_port(db, port_range, usable)
    if port is None:
        # Names whose invitation was never taken up keep their ports until now.
        names = db.execute("SELECT name FROM agents WHERE public_key IS NULL").fetchall()
        _release_lapsed(db, now, [name for (name,) in names])
        port = _lowest_port(db, port_range, usable)
    if port is not None:
        return port
    first, last = port_range[0], port_range[-1]
    raise Refused(f"no port from {first} to {last} is free; give one with --port")


def _lowest_port(
    db: sqlite3.Connection, port_range: range, usable: Callable[[int], bool]
) -> int | None:
    taken = {port for (port,) in db.execute("SELECT port FROM ports")}
    return next((port for port in port_range if port not in taken and usable(port)), None)


def _release_lapsed(db: sqlite3.Connection, now: float, names: Sequence[str]) -> set[str]:
    """Forget those of `names` that never enrolled and whose invitation expired."""
    released = set()
    for name in names:
        expires = _value(
            db,
            "SELECT invitations.expires FROM invitations JOIN agents USING (name)"
            " WHERE name = ? AND state = 'pending' AND agents.public_key IS NULL",
            (name,),
        )
        if expires is not None and expires <= now:
            db.execute(
                "UPDATE invitations SET state = 'expired' WHERE name = ? AND state = 'pending'",
                (name,),
            )
            db.execute("DELETE FROM agents WHERE name = ?", (name,))
            released.add(name)
    return released
