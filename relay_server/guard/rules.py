"""What holds at which service: the tables of server.toml, and what is right without any.

    [guard."home/web"]         the service `web` of the agent `home`
    visitors_per_source = 100

    [guard."*shell*"]          whatever has `shell` in its name, of whichever agent
    ssh = true

    [guard."*"]                all others
    guarded = false

A name is a pattern with `*`, `?` and `[…]`: with a slash of agent and service, without one of the
service alone. Of the tables that fit a service the first one in the file holds, and no other. What
it leaves out has the defaults that fit SSH servers, or those for anything else: `ssh` says which,
and unless it does the service's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Final

from protocol.process.config import between, parse_count, parse_duration
from relay_server.guard.guard import Caps
from relay_server.net.networks import Admission, Networks, parse_networks

# Whose names look like this, in capitals too, are SSH servers unless a table says otherwise.
SSH_NAMES: Final = "*ssh*"
# Looked through for each visitor; more are better said by fewer patterns.
MAX_TABLES: Final = 64
# Names of agents and services have 32 letters, those of other implementations 64.
MAX_PATTERN: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Of one service."""

    guarded: bool = True  # False: all below but `allow` and `deny` is off
    ssh: bool
    # Besides the lists for all services and those of the port.
    allow: Networks = field(default_factory=Networks)
    deny: Networks = field(default_factory=Networks)
    hold: float
    visitors_per_source: int
    young_visitors_per_source: int
    young_visitors: int
    waiting_visitors: int
    patience: float

    @property
    def admission(self) -> Admission:
        return Admission(allow=self.allow, deny=self.deny)

    @property
    def caps(self) -> Caps:
        return Caps(
            per_source=self.visitors_per_source,
            unauthenticated_per_source=self.young_visitors_per_source,
            unauthenticated=self.young_visitors,
            waiting=self.waiting_visitors,
        )


FOR_SSH: Final = Rules(
    ssh=True,
    # Clients that begin have done so within a round trip, also from far away; those few that wait
    # for the server lose a second.
    hold=1.0,
    # Such as an office behind one address.
    visitors_per_source=64,
    # dropbear takes five an address that have not logged in, and may still count one just evicted.
    young_visitors_per_source=4,
    # OpenSSH begins to drop at ten, dropbear at thirty; two for those just evicted.
    young_visitors=8,
    # Who waits for a place has a descriptor. More at a time are no people.
    waiting_visitors=64,
    # What ssh waits for before it says anything is the user's patience, and a login takes as long
    # again.
    patience=10.0,
)
# A browser opens six connections at once, sends little, and logs in nowhere that we could see: its
# visitors are never young, and only counted.
FOR_OTHERS: Final = replace(
    FOR_SSH,
    ssh=False,
    hold=0.0,
    # A quarter of what a session can have open (`max_streams`): one source is not all visitors.
    visitors_per_source=1024,
    young_visitors_per_source=0,
    young_visitors=0,
)


def _one_of(parse: Any, default: Any = None) -> Any:
    return field(default=default, metadata={"parse": parse})


_NETWORKS: Final = {"parse": parse_networks}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardTable:
    """A `[guard."PATTERN"]`; None stands for the default."""

    guarded: bool | None = None
    # Whether these are SSH servers: whom they let in is told by what they say.
    ssh: bool | None = None
    allow: Networks | None = field(default=None, metadata=_NETWORKS)
    deny: Networks | None = field(default=None, metadata=_NETWORKS)
    # How long a visitor may take to begin as an SSH client does; then it is let in all the same.
    # With 0 nobody is held, or refused for what it says.
    hold: float | None = _one_of(between(parse_duration, "0s", "10s"))
    # All of one source together, established ones too. Here and below 0 sets no bound.
    visitors_per_source: int | None = _one_of(between(parse_count, 0, 65535))
    # Who is young is told in guard.py. These are of one source, and then of the whole service.
    young_visitors_per_source: int | None = _one_of(between(parse_count, 0, 65535))
    young_visitors: int | None = _one_of(between(parse_count, 0, 65535))
    # How many may be in line for a place, and for how long. With none the worst one goes at once.
    waiting_visitors: int | None = _one_of(between(parse_count, 1, 4096))
    patience: float | None = _one_of(between(parse_duration, "0s", "60s"))

    def over_defaults(self, service: str) -> Rules:
        is_ssh = fnmatchcase(service.lower(), SSH_NAMES) if self.ssh is None else self.ssh
        default = FOR_SSH if is_ssh else FOR_OTHERS
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        return Rules(
            **{
                one.name: getattr(default, one.name) if said[one.name] is None else said[one.name]
                for one in fields(Rules)
            }
        )


_NO_TABLE: Final = GuardTable()


def check_patterns(tables: Mapping[str, GuardTable]) -> None:
    """Raise ValueError for what cannot be meant."""
    if len(tables) > MAX_TABLES:
        raise ValueError(f"guard: expected at most {MAX_TABLES} tables, not {len(tables)}")
    for pattern in tables:
        agent, slash, service = pattern.partition("/")
        whole = bool(agent and service) if slash else bool(pattern)
        if not whole or not pattern.isprintable() or len(pattern) > MAX_PATTERN:
            raise ValueError(
                f"guard: expected SERVICE or AGENT/SERVICE, perhaps with *, not {pattern[:60]!r}"
            )


def rules_for(tables: Mapping[str, GuardTable], agent: str, service: str) -> Rules:
    """What holds for the visitors of `service` of `agent`."""
    for pattern, table in tables.items():
        # An agent's name has no slash, so none can pass for another's by what it calls a service.
        if fnmatchcase(f"{agent}/{service}" if "/" in pattern else service, pattern):
            return table.over_defaults(service)
    return _NO_TABLE.over_defaults(service)
