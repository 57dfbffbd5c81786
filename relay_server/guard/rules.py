"""Which settings of the guard apply to a service: the tables of server.toml, and the defaults.

    [guard."home/web"]         the service `web` of the agent `home`
    per_source = 100

    [guard."*shell*"]          any service with `shell` in its name, of any agent
    ssh = true

    [guard."*"]                all other services
    enabled = false

The key of a table is a pattern with `*`, `?` and `[…]`: with a slash it matches agent and service,
without one the service alone. Of the tables that match a service only the first in the file
applies. Keys that it leaves out have the defaults for SSH servers or those for other services. The
key `ssh` says which; if it is left out too, the name of the service decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Final

from protocol.process.config import count, duration, setting
from relay_server.guard.guard import Caps
from relay_server.net.networks import Admission, Networks, networks_setting

# A service with such a name, in capitals too, is an SSH server unless a table says otherwise.
SSH_NAMES: Final = "*ssh*"
# All are tried for each visitor; more tables are better written as fewer patterns.
MAX_TABLES: Final = 64
# Names of agents and services have 32 letters, those of other implementations 64.
MAX_PATTERN: Final = 128

# Keys of server.toml that had other names before the guard used OpenSSH's words; `penalty_exempt`
# stands at the top of the file.
FORMER_KEYS: Final = {
    "guarded": "enabled",
    "visitors_per_source": "per_source",
    "young_visitors_per_source": "unauthenticated_per_source",
    "young_visitors": "unauthenticated",
    "waiting_visitors": "waiting",
    "uncounted": "penalty_exempt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The settings of one service; GuardTable has what each of them means."""

    enabled: bool = True
    ssh: bool
    allow: Networks = field(default_factory=Networks)
    deny: Networks = field(default_factory=Networks)
    hold: float
    per_source: int
    unauthenticated_per_source: int
    unauthenticated: int
    waiting: int
    patience: float

    @property
    def admission(self) -> Admission:
        return Admission(allow=self.allow, deny=self.deny)

    @property
    def caps(self) -> Caps:
        return Caps(
            per_source=self.per_source,
            unauthenticated_per_source=self.unauthenticated_per_source,
            unauthenticated=self.unauthenticated,
            waiting=self.waiting,
        )


FOR_SSH: Final = Rules(
    ssh=True,
    # A client that sends its identification first has done so within a round trip, also from far
    # away. The few clients that wait for the server lose a second.
    hold=1.0,
    # For an office behind one address.
    per_source=64,
    # dropbear accepts five from one address, and may still count one that was just evicted.
    unauthenticated_per_source=4,
    # OpenSSH drops connections from ten on (MaxStartups), dropbear from thirty; two are left for
    # visitors just evicted.
    unauthenticated=8,
    # Each visitor in line holds a descriptor. More at a time are bots.
    waiting=64,
    # As long as a user waits while ssh shows nothing; the login itself takes as long again.
    patience=10.0,
)
# A browser opens six connections at once, sends little, and logs in nowhere that the relay could
# see. So its visitors count as established from the start.
FOR_OTHERS: Final = replace(
    FOR_SSH,
    ssh=False,
    hold=0.0,
    # A quarter of the streams of a session (`max_streams`): one source must not take them all.
    per_source=1024,
    unauthenticated_per_source=0,
    unauthenticated=0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardTable:
    """One table `[guard."PATTERN"]`; None stands for the default, that of FOR_SSH or FOR_OTHERS."""

    former_keys: ClassVar = FORMER_KEYS

    enabled: bool | None = setting(
        None, "With `false`, nothing below applies but `allow` and `deny`."
    )
    ssh: bool | None = setting(
        None,
        "Whether these are SSH servers, whose logins are recognised by the sizes of their answers.",
        absent="true if the service has `ssh` in its name",
    )
    allow: Networks | None = networks_setting(
        None,
        "As at the top of the file, for these services. A visitor has to pass those lists, these"
        " ones and those of the port (`relay-server restrict`).",
    )
    deny: Networks | None = networks_setting(None, "Likewise.")
    hold: float | None = duration(
        None,
        "0s",
        "10s",
        "How long to wait for the `SSH-` of an SSH client. A silent visitor is passed on then; one"
        " that has sent anything else is refused. With 0 there is no wait, and no visitor is"
        " refused for what it sends.",
    )
    per_source: int | None = count(
        None,
        0,
        65535,
        "Visitors at once from one source, established ones too. Here and below, 0 sets no bound.",
    )
    unauthenticated_per_source: int | None = count(
        None, 0, 65535, "Visitors at once from one source that have not logged in."
    )
    unauthenticated: int | None = count(
        None, 0, 65535, "Visitors at once of the whole service that have not logged in."
    )
    # One at least: a newcomer is in line for a moment.
    waiting: int | None = count(None, 1, 4096, "How many visitors may wait in line for a place.")
    patience: float | None = duration(None, "0s", "60s", "How long each of them waits.")

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
