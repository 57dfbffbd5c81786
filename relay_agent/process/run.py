"""The agent's process: what runs, what it is told by signals and commands, and how it ends."""

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
from protocol.process.limits import tell_small_buffers
from protocol.process.logs import event
from protocol.process.sighup import ControllingTerminal
from protocol.process.state import StateError
from relay_agent.link.attach_loop import Agent
from relay_agent.link.relay_dialer import RelayDialer
from relay_agent.net.routes import DEBOUNCE, watch
from relay_agent.process.reload import Reload

if TYPE_CHECKING:
    from protocol.process.state import StateFolder
    from relay_agent.config import AgentConfig
    from relay_agent.services.service import Service

log = logging.getLogger(__name__)

# What SIGHUP and `relay-agent reload` read again, to give it to this agent.
Rereading: TypeAlias = Callable[[Agent], Reload]
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


async def serve(
    config: AgentConfig,
    services: Sequence[Service],
    keys: RelayDialer,
    state: StateFolder,
    rereading: Rereading,
) -> None:
    """Serve until SIGTERM or SIGINT. SIGUSR1: the network may have changed, dial now."""
    terminal = ControllingTerminal()
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        tell_small_buffers(min(config.stream_window_max, config.replay))
        async with trio.open_nursery() as nursery:
            agent = Agent(config, services, keys, nursery)
            nursery.start_soon(agent.stay_attached)
            reload = rereading(agent)
            nursery.start_soon(_answer_commands, agent, reload, state)
            nursery.start_soon(watch, agent.ways, agent.wait_ways, agent.look_again)
            async for number in signals:
                if number == signal.SIGUSR1:
                    agent.look_again()
                    await trio.sleep(DEBOUNCE)  # those that come meanwhile are one
                    continue
                if number == signal.SIGHUP and not terminal.is_gone:
                    with contextlib.suppress(ConfigError, StateError):  # the log has it
                        reload()
                    continue
                event(log, logging.INFO, "stopping", signal=signal.Signals(number).name)
                break
            await agent.say_goodbye()
            nursery.cancel_scope.cancel()


async def _answer_commands(agent: Agent, reload: Reload, state: StateFolder) -> None:
    """A router whose disk is full or read-only is to be reachable all the same."""
    commands: dict[str, control.Command] = {
        "status": lambda _: agent.status(),
        "reload": lambda _: asdict(reload()),
        "rotate-key": lambda _: agent.rotate_key(state),
    }
    try:
        await control.serve(state.path / SOCKET, commands)
    except StateError as exc:
        event(log, logging.WARNING, "no-control-socket", reason=str(exc))
