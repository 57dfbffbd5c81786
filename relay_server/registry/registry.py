"""The registry: which keys are whose, which ports they may publish, who is invited.

Where it is kept, and what a change is: `database`.

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

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.process.address import HostPort, parse_host_port
from protocol.process.names import parse_name
from protocol.process.state import StateError, StateFolder
from protocol.wire.hello import MAX_PORTS
from protocol.wire.identifiers import AgentKey, RelayKey, Token
from protocol.wire.noise import KEY_SIZE
from relay_server.net.networks import Admission, Networks, parse_networks
from relay_server.registry.database import BUSY_TIMEOUT, Database, scalar

REGISTRY_FILE: Final = "registry.db"
# For each port and list: what a person keeps by hand. A long list of the world's bad networks is
# for server.toml, or better for a firewall.
MAX_NETWORKS: Final = 256
# Invitations that may still enrol somebody: a fleet of 2,000 invited at once, twice. Only the state
# folder's owner invites, so this holds back a script gone wild, and nobody's guess: among so many
# tokens of 128 bits one try in 2^116 hits.
MAX_OUTSTANDING: Final = 4096
# For a change that the server makes between two turns of its loop, where every link waits for it.
_BRIEF_TIMEOUT: Final = 0.2
# Between two keys of one agent: each leaves a revoked one behind, for ever. At this rate a rogue
# agent fills a megabyte a day; a person does not notice it.
_BETWEEN_SUCCESSORS: Final = 10.0
# How long a token that enrolled nobody still gets the true reason for its refusal.
_REMEMBER_UNUSED: Final = 30 * 86400.0

_UNKNOWN: Final = "this invitation is unknown here; ask for a new one"
_EXPIRED: Final = "this invitation has expired; ask for a new one"


class Refused(Exception):  # noqa: N818 - an answer, not a defect
    """What was asked for contradicts what is registered; the text is one line for the user."""


class TokenRefused(Exception):  # noqa: N818 - an answer, not a defect
    """The token enrols nobody (any more); the text is one line for whoever showed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolledAgent:
    """A name and what belongs to it. `public_key` and `enrolled` are None until it enrols."""

    name: str
    public_key: AgentKey | None
    ports: tuple[int, ...]  # the first is its ssh port
    created: float
    enrolled: float | None
    # The newest of the relay's keys under which it is known to have come.
    relay_key: RelayKey | None = None
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


class Registry(Database):
    def __init__(
        self, state: StateFolder, *, busy_timeout: float = BUSY_TIMEOUT, migrate: bool = False
    ) -> None:
        """Open the registry in `state`, making it if it is missing. Raises StateError.

        `migrate`: bring one that an older version wrote up to date.
        """
        super().__init__(state, REGISTRY_FILE, busy_timeout=busy_timeout, migrate=migrate)

    def check(self) -> None:
        """Raise StateError unless this program could have written all that is in it.

        For a file from outside: names go into logs and tables, keys into comparisons.
        """
        self.check_tables()
        try:
            fault = self._fault()
        except (ValueError, TypeError) as error:
            fault = str(error)
        if fault is not None:
            raise StateError(f"{self._path}: not written by a relay: {fault}")

    def _fault(self) -> str | None:
        agents, invitations = self.agents(), self.invitations()
        ports = {agent.name: agent.ports for agent in agents}
        for name, some in (ports | {one.name: one.ports for one in invitations}).items():
            parse_name(name)
            if not all(type(port) is int and 0 < port < 65536 for port in some):
                return f"the ports of {name}"
        for agent in agents:
            if type(agent.public_key) is not bytes or len(agent.public_key) != KEY_SIZE:
                return f"the key of {agent.name}"
        for host in (*self.hosts(), *self.announced()):
            parse_host_port(str(host))
        self.link_ports(), self.port_range()
        relay_key = self.relay_key()
        return None if relay_key is None or len(relay_key) == KEY_SIZE else "the relay's key"

    # Reading

    def agents(self) -> list[EnrolledAgent]:
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

    def agent(self, name: str) -> EnrolledAgent | None:
        """The agent of that name, also one that is only invited."""
        with self._errors():
            return _agent(self._reader, name)

    def agent_by_key(self, public_key: AgentKey) -> EnrolledAgent | None:
        with self._errors():
            found = _agents(self._reader, "public_key = ?", (public_key,))
            return found[0] if found else None

    def revoked_name(self, public_key: AgentKey) -> str | None:
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

    def check_token(self, token: Token) -> None:
        """Raise TokenRefused for a token that was never given out.

        Asked before `redeem`: guesses cost a look, and neither a write nor a thread.
        """
        with self._errors():
            query = "SELECT 1 FROM invitations WHERE token_hash = ?"
            if scalar(self._reader, query, (_hash(token),)) is None:
                raise TokenRefused(_UNKNOWN)

    def change_stamp(self) -> int:
        """A number that differs after each change, by whichever process or thread."""
        with self._errors():
            return int(scalar(self._reader, "PRAGMA data_version"))

    # Changing

    def invite(
        self,
        name: str,
        token: Token,
        *,
        now: float,
        lifetime: float,
        port_range: range,
        ports: Sequence[int] = (),
        usable: Callable[[int], bool] = lambda port: True,
        admission: Admission | None = None,
        relay_key: RelayKey | None = None,
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

    def redeem(self, token: Token, public_key: AgentKey, now: float) -> EnrolledAgent:
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

    def succeed(self, public_key: AgentKey, successor: AgentKey, now: float) -> None:
        """The agent with `public_key` has `successor` instead, and its old key is revoked.

        Does not wait for other writers for long. Raises Refused.
        """
        with self._change(_BRIEF_TIMEOUT) as db:
            name = scalar(db, "SELECT name FROM agents WHERE public_key = ?", (public_key,))
            if name is None:
                raise Refused("the old key is not an agent's any more")
            holder = scalar(db, "SELECT name FROM agents WHERE public_key = ?", (successor,))
            if holder is not None or _revoked_name(db, successor) is not None:
                raise Refused("the new key is, or was, that of an agent here")
            last = scalar(
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

    def behind(self, relay_key: RelayKey) -> list[str]:
        """The enrolled agents that are not known to have come under `relay_key`."""
        with self._errors():
            rows = self._reader.execute(
                "SELECT name FROM agents WHERE public_key IS NOT NULL AND relay_key IS NOT ?"
                " ORDER BY name",
                (relay_key,),
            )
            return [name for (name,) in rows]

    def invited_behind(self, relay_key: RelayKey, now: float) -> list[str]:
        """The names whose invitation can still be used and carries another key of the relay."""
        with self._errors():
            rows = self._reader.execute(
                "SELECT name FROM invitations"
                " WHERE state = 'pending' AND expires > ? AND relay_key IS NOT ? ORDER BY name",
                (now, relay_key),
            )
            return [name for (name,) in rows]

    def follow(
        self,
        name: str,
        public_key: AgentKey,
        relay_key: RelayKey,
        successor: AgentKey | None = None,
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

    def relay_key(self) -> RelayKey | None:
        """The public half of the current key, if it was ever rotated."""
        text = self._recall("relay_key", None)
        return None if text is None else RelayKey(bytes.fromhex(text))

    def remember_relay_key(self, public: RelayKey) -> None:
        """Wakes a running server too, also where it cannot be asked."""
        self._remember("relay_key", public.hex())

    def _recall(self, key: str, default: Any) -> Any:
        with self._errors():
            text = scalar(self._reader, "SELECT value FROM settings WHERE key = ?", (key,))
        return default if text is None else json.loads(text)

    def _remember(self, key: str, value: object) -> None:
        with self._change() as db:
            # What is there already must not wear the disk or wake the server.
            db.execute(
                "INSERT INTO settings VALUES (?, ?) ON CONFLICT (key) DO UPDATE"
                " SET value = excluded.value WHERE value IS NOT excluded.value",
                (key, json.dumps(value)),
            )


def _hash(token: Token) -> bytes:
    # A token is random, so a plain hash cannot be searched.
    return hashlib.sha256(token).digest()


def _agents(db: sqlite3.Connection, where: str, arguments: Sequence[object]) -> list[EnrolledAgent]:
    columns = "name, public_key, created, enrolled, relay_key"
    rows = db.execute(
        f"SELECT {columns} FROM agents WHERE {where} ORDER BY name",  # noqa: S608 - all of it is ours
        arguments,
    ).fetchall()
    # One query for all of them: one an agent takes longer the more agents there are.
    ports = _ports_of(db, where, arguments)
    return [
        EnrolledAgent(
            name=name,
            public_key=public_key,
            ports=tuple(port for port, _ in ports.get(name, [])),
            created=created,
            enrolled=enrolled,
            admissions=tuple(
                (port, admission)
                for port, admission in ports.get(name, [])
                if admission is not None
            ),
            relay_key=relay_key,
        )
        for name, public_key, created, enrolled, relay_key in rows
    ]


def _agent(db: sqlite3.Connection, name: str) -> EnrolledAgent | None:
    found = _agents(db, "name = ?", (name,))
    return found[0] if found else None


def _ports(db: sqlite3.Connection, name: str) -> tuple[int, ...]:
    rows = db.execute("SELECT port FROM ports WHERE agent = ? ORDER BY position", (name,))
    return tuple(port for (port,) in rows)


def _ports_of(
    db: sqlite3.Connection, where: str, arguments: Sequence[object]
) -> dict[str, list[tuple[int, Admission | None]]]:
    """The ports of each agent for which `where` holds; None for a port that admits all."""
    query = (
        "SELECT agent, port, allow, deny"  # noqa: S608 - all of it is ours
        " FROM agents JOIN ports ON ports.agent = agents.name"
        f" WHERE {where} ORDER BY agent, position"
    )
    ports: dict[str, list[tuple[int, Admission | None]]] = {}
    for agent, port, allow, deny in db.execute(query, arguments):
        ports.setdefault(agent, []).append((port, _admission(agent, allow, deny)))
    return ports


def _admission(agent: str, allow: str, deny: str) -> Admission | None:
    if allow == deny == "[]":
        return None
    try:
        return Admission(allow=_networks(allow), deny=_networks(deny))
    except ValueError as error:  # edited by hand; to guess would be to let somebody in
        raise StateError(f"registry: who may visit {agent} cannot be read: {error}") from None


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


def _revoked_name(db: sqlite3.Connection, public_key: AgentKey) -> str | None:
    name: str | None = scalar(db, "SELECT name FROM revoked WHERE public_key = ?", (public_key,))
    return name


def _revoke_key(db: sqlite3.Connection, public_key: AgentKey, name: str, now: float) -> None:
    db.execute("INSERT INTO revoked VALUES (?, ?, ?)", (public_key, name, now))


def _cancel(db: sqlite3.Connection, name: str) -> bool:
    cursor = db.execute(
        "UPDATE invitations SET state = 'cancelled' WHERE name = ? AND state = 'pending'", (name,)
    )
    return cursor.rowcount > 0


def _outstanding(db: sqlite3.Connection, now: float, *, besides: str) -> int:
    """How many names other than `besides` are invited, and may still enrol."""
    query = "SELECT count(*) FROM invitations WHERE state = 'pending' AND expires > ? AND name != ?"
    return int(scalar(db, query, (now, besides)))


def _enrol(db: sqlite3.Connection, name: str, public_key: AgentKey, now: float) -> None:
    holder = scalar(db, "SELECT name FROM agents WHERE public_key = ?", (public_key,))
    if holder not in (None, name):
        raise TokenRefused(f"this agent is enrolled as {holder} already")
    former = scalar(db, "SELECT public_key FROM agents WHERE name = ?", (name,))
    if former not in (None, public_key):
        _revoke_key(db, former, name, now)
    db.execute(
        "UPDATE agents SET public_key = ?, enrolled = ?, relay_key = NULL WHERE name = ?",
        (public_key, now, name),
    )


def _grant(db: sqlite3.Connection, name: str, ports: Sequence[int], now: float) -> None:
    """In that order; those it has already keep what else is known of them."""
    for position, port in enumerate(ports):
        holder = scalar(db, "SELECT agent FROM ports WHERE port = ?", (port,))
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
        expires = scalar(
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
