"""The relay's process: what runs, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from protocol import __version__
from protocol.process.address import HostPort
from protocol.process.cli.command import CommandFailed
from protocol.process.config import ConfigError
from protocol.process.control import server as control
from protocol.process.control.client import SOCKET
from protocol.process.control.schema import Answer
from protocol.process.handover import has_store, take_left
from protocol.process.limits import descriptors, raise_descriptor_limit, tell_small_buffers
from protocol.process.logs import event
from protocol.process.sighup import ControllingTerminal
from protocol.process.state import StateError, StateFolder
from protocol.process.systemd import notify
from protocol.wire.frame import CloseCode
from relay_server.agents.context import RelayContext
from relay_server.agents.handshakes import Handshakes
from relay_server.agents.manager import Agents
from relay_server.agents.status import Overview, RelayStatus, Reloaded
from relay_server.net.accept_loop import accept_forever, listen, stop_accepting
from relay_server.net.fd_store import UNCLAIMED_SECONDS, StoredListeners
from relay_server.process.handover import Found, leave_to_manager, upgrade
from relay_server.process.reload import Reload
from relay_server.process.sd_status import report
from relay_server.registry.relay_keys import RelayKeys, retire_unneeded

if TYPE_CHECKING:
    from relay_server.config import ServerConfig
    from relay_server.registry.registry import Registry

log = logging.getLogger(__name__)

# The command tells of a change through the control socket; where it may not, this is how late the
# change is seen. The look costs a few microseconds.
REGISTRY_POLL: Final = 1.0
# From the signal to the end: goodbyes are on their way in a millisecond, and nobody is left to wait
# for. Well inside the 2 s that a service manager is promised.
DRAIN: Final = 0.2
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


async def serve(
    config: ServerConfig,
    state: StateFolder,
    registry: Registry,
    keys: RelayKeys,
    *,
    read: Callable[[], ServerConfig] | None = None,
) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP: `read` the configuration again, if it can be.
    SIGUSR2: become what is installed now.

    Under a manager with an FD store SIGTERM may mean a restart, so sessions are left there; where
    it does not start us again, it closes them. SIGINT is the end of them.

    Raises CommandFailed if a port cannot be had, StateError if the control socket cannot, either
    perhaps in a group.
    """
    with contextlib.ExitStack() as stack:
        found = Found(take_left())
        stored = StoredListeners(found.others)
        # A socket unit knows better than the defaults where agents dial in.
        sockets = [stack.enter_context(sock) for sock in stored.links] or [
            stack.enter_context(_listen(stored, address)) for address in config.listen
        ]
        raise_descriptor_limit()
        terminal = ControllingTerminal()
        with trio.open_signal_receiver(*SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                context = RelayContext(config, registry, keys, nursery, stored)
                process = _Process(context, state, sockets, read or (lambda: config))
                process.start(found)
                async for number in signals:
                    if await process.is_ended_by(number, on_terminal=not terminal.is_gone):
                        break
                await process.end(number)


class _Process:
    """What runs in the context's nursery, and what is done about signals."""

    def __init__(
        self,
        context: RelayContext,
        state: StateFolder,
        sockets: Sequence[socket.socket],
        read: Callable[[], ServerConfig],
    ) -> None:
        """Agents dial in at `sockets`."""
        self._context = context
        self._state = state
        self._sockets = sockets
        self._read = read
        self._agents = Agents(context)
        self._handshakes = Handshakes(context, self._agents)
        self._reload = Reload(context, read)

    def start(self, found: Found) -> None:
        """Go on with what was `found`, then start every task. Raises CommandFailed."""
        context, agents, nursery = self._context, self._agents, self._context.nursery
        found.restore(agents, context.registry)
        for sock in self._sockets:
            nursery.start_soon(
                accept_forever, sock, self._handshakes.on_caller, context.counters.accept_failed
            )
        refresh = partial(_refresh, self._state, context.keys, agents)
        nursery.start_soon(_watch_registry, context.registry, refresh)
        nursery.start_soon(_watch_followers, self._state, context.keys, context.registry)
        listening = [HostPort(*sock.getsockname()[:2]) for sock in self._sockets]
        commands = _commands(agents, refresh, self._reload, listening)
        nursery.start_soon(control.serve, self._state.path / SOCKET, commands)
        for address in listening:
            event(log, logging.INFO, "listening", host=address.host, port=address.port)
        if context.config.metrics.listen is not None:
            self._serve_metrics(context.config.metrics.listen)
        tell_small_buffers(context.config.stream_window_max)
        nursery.start_soon(_close_unclaimed, context.stored)
        nursery.start_soon(report, agents)

    async def is_ended_by(self, number: int, *, on_terminal: bool) -> bool:
        """Whether the relay is to end now; what else a signal asks for is done."""
        if number == signal.SIGHUP and on_terminal:
            self._context.nursery.start_soon(_reload_as_told, self._reload)
            return False
        if number == signal.SIGUSR2:
            await upgrade(self._agents, self._context.stored, self._read)
            return False
        event(log, logging.INFO, "stopping", signal=signal.Signals(number).name)
        return True

    async def end(self, number: int) -> None:
        """Leave the sessions to the manager if it may start us again, else say goodbye."""
        notify("STOPPING=1")
        self._context.stored.leave()
        if number == signal.SIGTERM and has_store():
            leave_to_manager(self._agents)
        for sock in self._sockets:
            stop_accepting(sock)
        self._agents.say_goodbye(CloseCode.GONE)
        await trio.sleep(DRAIN)
        self._context.nursery.cancel_scope.cancel()

    def _serve_metrics(self, address: HostPort) -> None:
        """Raises CommandFailed if a library is missing or the address cannot be had."""
        try:
            # Only here: what they need is not installed unless somebody wants it.
            from relay_server.metrics.collector import Metrics
            from relay_server.metrics.http import MetricsEndpoint
        except ModuleNotFoundError as exc:
            raise CommandFailed(
                f"metrics need the Python library {exc.name}: pip install 'ssh-relay[metrics]'"
            ) from None
        try:
            sock = listen(address.host, address.port, dual_stack=True)
        except OSError as exc:
            raise CommandFailed(
                f"cannot listen on {address} for metrics: {exc.strerror or exc}"
            ) from None
        nursery, sockets = self._context.nursery, self._sockets
        metrics = Metrics(self._context, self._agents, self._handshakes)
        # Those where agents dial in are closed when the relay stops, the first thing that it does.
        endpoint = MetricsEndpoint(
            metrics.page, lambda: all(one.fileno() >= 0 for one in sockets), nursery
        )
        nursery.start_soon(metrics.lag.measure)
        nursery.start_soon(endpoint.serve, sock)
        event(log, logging.INFO, "metrics-listening", host=address.host, port=address.port)


async def _close_unclaimed(stored: StoredListeners) -> None:
    await trio.sleep(UNCLAIMED_SECONDS)
    for address in stored.close_unclaimed():
        event(log, logging.INFO, "port-unclaimed", address=address)


def _listen(stored: StoredListeners, address: HostPort) -> socket.socket:
    try:
        return stored.listen(address.host, address.port, dual_stack=True)
    except OSError as exc:
        if address.host == "::" and exc.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return _listen_v4(stored, address)
        raise CommandFailed(f"cannot listen on {address}: {exc.strerror or exc}") from exc


def _listen_v4(stored: StoredListeners, address: HostPort) -> socket.socket:
    """For a kernel without IPv6, where the dual-stack default cannot be had."""
    try:
        return stored.listen("0.0.0.0", address.port, dual_stack=False)  # noqa: S104 - as [::] is
    except OSError as exc:
        raise CommandFailed(f"cannot listen on {address}: {exc.strerror or exc}") from exc


async def _reload_as_told(reload: Reload) -> None:
    """By a signal, which nobody waits for: the log says what became of it."""
    with contextlib.suppress(ConfigError, StateError):
        await reload()


def _refresh(state: StateFolder, keys: RelayKeys, agents: Agents) -> None:
    """Put into effect what commands have changed. Raises StateError."""
    # First, so that a key that cannot be read keeps nobody from being revoked.
    agents.refresh()
    if keys.look_again(state):
        event(log, logging.INFO, "key-rotated", public=keys.current.public.hex())
        agents.renew_links()


def _commands(
    agents: Agents,
    put_into_effect: Callable[[], None],
    reload: Reload,
    listening: Sequence[HostPort],
) -> dict[str, control.Command]:
    began = trio.current_time()

    def show(_: control.Request) -> Overview:
        return {"agents": agents.overview()}

    def status(_: control.Request) -> RelayStatus:
        return {
            "version": __version__,
            "age": round(trio.current_time() - began, 1),
            "listening": [str(address) for address in listening],
            **descriptors(),
            "agents": agents.status(),
        }

    def refresh(_: control.Request) -> Answer:
        put_into_effect()
        return {}

    async def read_again(_: control.Request) -> Reloaded:
        outcome = await reload()
        return {"changed": list(outcome.changed), "restart": list(outcome.restart)}

    def make_way(_: control.Request) -> Answer:
        # After this answer: the turn ends before a signal is looked at.
        signal.raise_signal(signal.SIGUSR2)
        return {}

    return {
        "agents": show,
        "status": status,
        "refresh": refresh,
        "reload": read_again,
        "upgrade": make_way,
    }


async def _watch_registry(registry: Registry, refresh: Callable[[], None]) -> None:
    seen = registry.change_stamp()
    failing = False
    while True:
        await trio.sleep(REGISTRY_POLL)
        try:
            stamp = registry.change_stamp()
            if stamp != seen:
                refresh()
        except StateError as exc:
            if not failing:
                event(log, logging.ERROR, "registry-failed", reason=str(exc))
            failing = True
        else:
            seen, failing = stamp, False


async def _watch_followers(state: StateFolder, keys: RelayKeys, registry: Registry) -> None:
    """End the former keys once nobody needs them: between two rotations there is one key."""
    failing = False
    while True:
        try:
            if retire_unneeded(state, keys, registry, time.time()):
                event(log, logging.INFO, "former-keys-retired")
            failing = False
        except StateError as exc:
            if not failing:
                event(log, logging.ERROR, "former-keys-kept", reason=str(exc))
            failing = True
        await trio.sleep(REGISTRY_POLL)
