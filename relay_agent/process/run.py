"""The agent's process: what runs, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from protocol.process.config import ConfigError
from protocol.process.control import server as control
from protocol.process.control.client import SOCKET
from protocol.process.control.schema import Answer
from protocol.process.limits import tell_small_buffers
from protocol.process.logs import event
from protocol.process.sighup import ControllingTerminal
from protocol.process.state import StateError, StateFolder
from relay_agent.identity.agent_keys import rotate
from relay_agent.link.attach_loop import AttachLoop
from relay_agent.link.relay_dialer import RelayDialer
from relay_agent.link.status import AgentStatus
from relay_agent.net.routes import DEBOUNCE, watch
from relay_agent.process.reload import Reload

if TYPE_CHECKING:
    from relay_agent.config import AgentConfig
    from relay_agent.services.service import Service

log = logging.getLogger(__name__)

# Makes what SIGHUP and `relay-agent reload` call.
MakeReload: TypeAlias = Callable[[AttachLoop], Reload]
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


async def serve(
    config: AgentConfig,
    services: Sequence[Service],
    dialer: RelayDialer,
    state: StateFolder,
    make_reload: MakeReload,
) -> None:
    """Run until SIGTERM or SIGINT. SIGHUP: read the files again. SIGUSR1: the network may have
    changed, dial now."""
    terminal = ControllingTerminal()
    with trio.open_signal_receiver(*SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            loop = AttachLoop(config, services, dialer, nursery)
            process = _Process(loop, state, make_reload(loop), nursery)
            tell_small_buffers(min(config.stream_window_max, config.replay))
            process.start()
            async for number in signals:
                if await process.is_ended_by(number, on_terminal=not terminal.is_gone):
                    break
            await process.end()


class _Process:
    """What runs in `nursery`, and what is done about signals."""

    def __init__(
        self, loop: AttachLoop, state: StateFolder, reload: Reload, nursery: trio.Nursery
    ) -> None:
        self._loop = loop
        self._state = state
        self._reload = reload
        self._nursery = nursery

    def start(self) -> None:
        """Start every task."""
        loop = self._loop
        self._nursery.start_soon(loop.run)
        self._nursery.start_soon(_serve_control, self._state, self._commands())
        self._nursery.start_soon(watch, loop.addresses, loop.wait_addresses, loop.on_network_change)

    async def is_ended_by(self, number: int, *, on_terminal: bool) -> bool:
        """Whether the agent is to end now; what else a signal asks for is done."""
        if number == signal.SIGHUP and on_terminal:
            with contextlib.suppress(ConfigError, StateError):  # the log says what is wrong
                self._reload()
            return False
        if number == signal.SIGUSR1:
            self._loop.on_network_change()
            await trio.sleep(DEBOUNCE)  # all signals that come meanwhile count as one
            return False
        event(log, logging.INFO, "stopping", signal=signal.Signals(number).name)
        return True

    async def end(self) -> None:
        """Say goodbye to the relay, so that it ends the session as well."""
        await self._loop.say_goodbye()
        self._nursery.cancel_scope.cancel()

    def _commands(self) -> dict[str, control.Command]:
        def status(_: control.Request) -> AgentStatus:
            return self._loop.status()

        def read_again(_: control.Request) -> Answer:
            return asdict(self._reload())

        def rotate_key(_: control.Request) -> Answer:
            self._loop.use_keys(rotate(self._state))
            return {}

        return {"status": status, "reload": read_again, "rotate-key": rotate_key}


async def _serve_control(state: StateFolder, commands: dict[str, control.Command]) -> None:
    """Without a control socket the agent runs all the same.

    A router whose disk is full or read-only is to be reachable.
    """
    try:
        await control.serve(state.path / SOCKET, commands)
    except StateError as exc:
        event(log, logging.WARNING, "no-control-socket", reason=str(exc))
