"""The files and options of `run` are read again, and put into effect whole or not at all.

services       at once: the removed ones are withdrawn, the added ones published. Streams go on,
               also those of a removed service. Another target is for the next visitor
hosts          for the next dial
options        windows and budgets for the next session, the rest at once
another key,   not before a restart: this process is another agent at the relay
another relay
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from protocol.process import logs
from protocol.process.config import ConfigError
from protocol.process.logs import event
from protocol.process.state import StateError
from protocol.wire.identifiers import AgentKey

if TYPE_CHECKING:
    from relay_agent.config import AgentConfig
    from relay_agent.identity.relay_identity import RelayIdentity
    from relay_agent.link.attach_loop import AttachLoop
    from relay_agent.services.service import Service

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `run` is told by files and options."""

    config: AgentConfig
    services: Sequence[Service]
    relay: RelayIdentity
    public_key: AgentKey  # of this agent


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Names of services, and of options."""

    added: Sequence[str]
    removed: Sequence[str]
    changed: Sequence[str]
    options: Sequence[str]
    restart: Sequence[str]  # these too, but not in effect


class Reload:
    def __init__(self, settings: Settings, read: Callable[[], Settings], loop: AttachLoop) -> None:
        """`settings` are in effect; `read` returns the files' as of now, or raises ConfigError or
        StateError."""
        self._settings = settings
        self._read = read
        self._loop = loop

    def __call__(self) -> Outcome:
        """Raises ConfigError or StateError, and nothing has changed then."""
        try:
            wanted = self._read()
        except (ConfigError, StateError) as exc:
            event(log, logging.ERROR, "reload-refused", reason=str(exc))
            raise
        if not self._is_same_agent(wanted):
            wanted = replace(wanted, relay=self._settings.relay)
            restart = ["enrolment"]
        else:
            restart = []
        outcome = _compare(self._settings, wanted, restart)
        self._settings = wanted
        self._loop.reconfigure(wanted.config, wanted.services, wanted.relay.hosts)
        if {"log_level", "log_format"}.intersection(outcome.options):
            logs.configure(wanted.config.log_level, wanted.config.log_format)
        event(
            log,
            logging.INFO,
            "reloaded",
            **{one.name: list(getattr(outcome, one.name)) for one in fields(outcome)},
        )
        return outcome

    def _is_same_agent(self, wanted: Settings) -> bool:
        """Whether `wanted` is for this agent at this relay; either may have rotated its key."""
        known, told = self._loop.relay, wanted.relay
        common = {known.key, known.successor} & {told.key, told.successor} - {None}
        return bool(common) and wanted.public_key == self._loop.public_key


def _compare(before: Settings, after: Settings, restart: Sequence[str]) -> Outcome:
    had, has = ({one.name: one for one in settings.services} for settings in (before, after))
    options = [
        one.name
        for one in fields(after.config)
        if one.name != "services"
        and getattr(before.config, one.name) != getattr(after.config, one.name)
    ]
    if before.relay.hosts != after.relay.hosts:
        options.append("hosts")
    return Outcome(
        added=[name for name in has if name not in had],
        removed=[name for name in had if name not in has],
        changed=[name for name in has if name in had and had[name] != has[name]],
        options=options,
        restart=restart,
    )
