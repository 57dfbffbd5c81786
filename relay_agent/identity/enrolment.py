"""What `join` leaves for `run`: who this agent is, its key, and which relay to trust.

    joining.key      a new key, saved before its invitation's token is shown to the relay
    agent.key        the key of the enrolment below
    former.key       the keys before, if it was rotated (`agent_keys`)
    enrolment.toml   name, relay and services

A key belongs to one invitation, whose digest is kept beside it. The relay binds a token to the
first key that shows it, so the same invitation must find the same key again after a failure. A new
invitation gets a new key, since the old one may have been revoked for good. Until the new enrolment
is saved the old one stays as it was: a join that fails breaks nothing.

The relay may rotate its own key: `run` saves the successor that it is told of before it uses it,
and drops the old key once the new one has worked (`link.relay_dialer`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import Final

from protocol.process.address import HostPort, parse_host_port
from protocol.process.config import ConfigError, each, load
from protocol.process.state import StateError, StateFolder
from protocol.wire.identifiers import RelayKey, Token
from protocol.wire.invitation import MAX_HOSTS
from protocol.wire.noise import KEY_SIZE, StaticKey
from relay_agent.config import ServiceTable
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.services.service import Service

ENROLMENT_FILE: Final = "enrolment.toml"
KEY_FILE: Final = "agent.key"
# Held by the process that may change the enrolment: `run`, `join` or `rotate-key`.
LOCK: Final = "agent.lock"
FORMER_FILE: Final = "former.key"
JOINING_FILE: Final = "joining.key"

_HEX_KEY: Final = re.compile(rf"[0-9a-f]{{{2 * KEY_SIZE}}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """`name` is what the relay calls this agent; every service has its public port."""

    name: str
    relay: RelayIdentity
    services: tuple[Service, ...]


# --- the key


def load_or_make_key(state: StateFolder, token: Token) -> StaticKey:
    """The key that may show `token`. A new one is saved before this returns.

    Raises ConfigError, StateError.
    """
    digest = hashlib.sha256(token).hexdigest()
    for name in (JOINING_FILE, KEY_FILE):
        text = state.read_secret(name)
        if text is not None and text.split()[1:] == [digest]:
            return parse_key(state, name, text)
    key = StaticKey.generate()
    state.write_secret(JOINING_FILE, f"{key.private.hex()}\n{digest}\n")
    return key


def load_key(state: StateFolder) -> StaticKey:
    """The key of the saved enrolment. Raises ConfigError if there is none, StateError."""
    text = state.read_secret(KEY_FILE)
    if text is None:
        raise ConfigError(f"{state.path / KEY_FILE}: missing; {_JOIN_AGAIN}")
    return parse_key(state, KEY_FILE, text)


def parse_key(state: StateFolder, name: str, text: str) -> StaticKey:
    private, *_ = [*text.split(), ""]
    if not _HEX_KEY.fullmatch(private):  # not shown: it may be a key but for one digit
        raise ConfigError(
            f"{state.path / name}: expected a key of {2 * KEY_SIZE} hexadecimal digits;"
            f" remove the file and {_JOIN_AGAIN}"
        )
    return StaticKey.from_private(bytes.fromhex(private))


# --- the rest


def save_enrolment(state: StateFolder, enrolment: Enrolment) -> None:
    """Make this the enrolment that `run` uses, with the key it was made with."""
    # The key first. If the power fails in between, the old enrolment has the new key. The reverse
    # would be worse: the relay is mostly the same one, and has revoked the old key already.
    key = state.read_secret(JOINING_FILE)
    if key is not None:
        state.write_secret(KEY_FILE, key)
    state.write(ENROLMENT_FILE, _as_toml(enrolment))
    # Neither is needed any more: one has the key that is in `agent.key` now, the other former keys
    # of the enrolment before. So it is no failure if they stay.
    for name in (JOINING_FILE, FORMER_FILE) if key is not None else (JOINING_FILE,):
        with contextlib.suppress(OSError):
            (state.path / name).unlink(missing_ok=True)


def save_relay(state: StateFolder, relay: RelayIdentity) -> None:
    """Save what the relay has told of itself in the saved enrolment. Raises StateError."""
    try:
        enrolment = load_enrolment(state)
    except ConfigError as error:  # the file was edited meanwhile, and is wrong now
        raise StateError(str(error)) from None
    # The hosts in the file may have been edited since `relay` was loaded.
    kept = replace(relay, hosts=enrolment.relay.hosts)
    state.write(ENROLMENT_FILE, _as_toml(replace(enrolment, relay=kept)))


def load_enrolment(state: StateFolder) -> Enrolment:
    """The saved enrolment. Raises ConfigError with what to do when there is none."""
    if state.read(ENROLMENT_FILE) is None:
        raise ConfigError(f"{state.path}: not joined yet; {_JOIN}")
    file = load(_EnrolmentFile, state.path / ENROLMENT_FILE, required=True)
    services = tuple(
        Service(name, table.target, table.port) for name, table in file.services.items()
    )
    relay = RelayIdentity(
        hosts=file.hosts,
        key=file.relay_key,
        successor=file.relay_successor,
        further=file.further_hosts,
    )
    return Enrolment(name=file.name, relay=relay, services=services)


_JOIN: Final = "run: relay-agent join, with the invitation that relay-server invite printed"
_JOIN_AGAIN: Final = "run relay-agent join with a new invitation"


_hosts: Final = each(parse_host_port, least=1, most=MAX_HOSTS)


def _relay_key(value: object) -> RelayKey:
    if not isinstance(value, str) or not _HEX_KEY.fullmatch(value):
        raise ValueError(f"expected {2 * KEY_SIZE} hexadecimal digits")
    return RelayKey(bytes.fromhex(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class _EnrolmentFile:
    name: str
    hosts: tuple[HostPort, ...] = field(metadata={"parse": _hosts})
    relay_key: RelayKey = field(metadata={"parse": _relay_key})
    services: dict[str, ServiceTable]
    relay_successor: RelayKey | None = field(default=None, metadata={"parse": _relay_key})
    further_hosts: tuple[HostPort, ...] = field(default=(), metadata={"parse": _hosts})

    def __post_init__(self) -> None:
        for name, table in self.services.items():
            if table.port is None:
                raise ValueError(f"services.{name}.port: missing; expected a port")


def _as_toml(enrolment: Enrolment) -> str:
    hosts = ", ".join(_quoted(str(host)) for host in enrolment.relay.hosts)
    lines = [
        "# Written by relay-agent join; your own settings go into agent.toml.",
        f"name = {_quoted(enrolment.name)}",
        f"hosts = [{hosts}]",
        f"relay_key = {_quoted(enrolment.relay.key.hex())}",
    ]
    if enrolment.relay.successor is not None:
        lines.append(f"relay_successor = {_quoted(enrolment.relay.successor.hex())}")
    if enrolment.relay.further:
        further = ", ".join(_quoted(str(host)) for host in enrolment.relay.further)
        lines.append(f"further_hosts = [{further}]")
    lines.append("[services]")
    for service in enrolment.services:
        lines += [
            f"[services.{_quoted(service.name)}]",
            f"target = {_quoted(str(service.target))}",
            f"port = {service.port}",
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # A string of JSON is one of TOML, but for one control character. The relay chooses the name, so
    # anything may be in it.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
