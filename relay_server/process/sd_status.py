"""What the service manager hears of us: that we are ready, how we are, that we are alive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from protocol.process.systemd import notify, watchdog_seconds

if TYPE_CHECKING:
    from relay_server.agents.manager import Agents

# How old the line in `systemctl status` may be: people look at it again after seconds.
STATUS_SECONDS: Final = 5.0


async def report(agents: Agents) -> None:
    """Say that the relay is ready, then how it is, until cancelled."""
    patience = watchdog_seconds()
    # Half of it, as sd_watchdog_enabled(3) recommends; from a task, so that it stops when they do.
    pause = STATUS_SECONDS if patience is None else min(STATUS_SECONDS, patience / 2)
    notify("READY=1", f"STATUS={status(agents)}")
    while True:
        await trio.sleep(pause)
        notify("WATCHDOG=1", f"STATUS={status(agents)}")


def status(agents: Agents) -> str:
    """One line for `systemctl status`."""
    present = agents.present
    attached = sum(one.ownership.attached for one in present)
    ports = sum(listener.open for one in present for listener in one.ports.listeners.values())
    visitors = sum(one.endpoint.session.open_streams for one in present if one.endpoint)
    return (
        f"{attached} agents attached, {len(present) - attached} away,"
        f" {ports} ports open, {visitors} visitors"
    )
