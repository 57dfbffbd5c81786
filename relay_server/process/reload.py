"""Reload: the configuration is read again, and put into effect whole or not at all.

    at once                 what is logged
    for who comes then      lists, tables of the guard, bounds on callers
    for what begins then    how long a lost agent is kept, windows and budgets, invitations
    not before a restart    the addresses that sockets are open on: `NEEDS_RESTART`

What is open stays open. If anything in the file is wrong, the former configuration stays in effect.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from protocol.process import logs
from protocol.process.config import ConfigError
from protocol.process.logs import event
from protocol.process.state import StateError
from relay_server.agents.context import RelayContext

if TYPE_CHECKING:
    from relay_server.config import ServerConfig
    from relay_server.registry.registry import Registry

log = logging.getLogger(__name__)

NEEDS_RESTART: Final = ("listen", "bind", "metrics")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Keys of the file."""

    changed: Sequence[str]
    restart: Sequence[str]  # these too, but not in effect


class Reload:
    def __init__(self, context: RelayContext, read: Callable[[], ServerConfig]) -> None:
        self._context = context
        self._read = read
        self._one_at_a_time = trio.Lock()

    async def __call__(self) -> Outcome:
        """Raises ConfigError or StateError, and nothing has changed then."""
        async with self._one_at_a_time:
            try:
                wanted, current = self._read(), self._context.config
                different = [
                    one.name
                    for one in fields(wanted)
                    if getattr(wanted, one.name) != getattr(current, one.name)
                ]
                outcome = Outcome(
                    [name for name in different if name not in NEEDS_RESTART],
                    [name for name in different if name in NEEDS_RESTART],
                )
                kept = {name: getattr(current, name) for name in NEEDS_RESTART}
                config = replace(wanted, **kept)
                if outcome.changed:
                    # Writing waits for the disk; links must not.
                    await trio.to_thread.run_sync(partial(remember, self._context.registry, config))
            except (ConfigError, StateError) as exc:
                event(log, logging.ERROR, "reload-refused", reason=str(exc))
                raise
            self._context.reconfigure(config)
            if {"log_level", "log_format"}.intersection(outcome.changed):
                logs.configure(config.log_level, config.log_format)
            event(
                log,
                logging.INFO,
                "reloaded",
                changed=list(outcome.changed),
                needs_restart=list(outcome.restart),
            )
            return outcome


def remember(registry: Registry, config: ServerConfig) -> None:
    """What `invite` has to know."""
    if config.hosts:
        registry.remember_hosts(config.dialled)
    registry.remember_link_ports(config.link_ports)
    registry.remember_port_range(config.ports)
