"""What the agents' links go through: a forwarder that cuts, stalls, swallows and refuses."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Final

import trio

from tests.support.ports import LOOPBACK, free_port
from tests.support.waiting import LIMIT

_PIECE: Final = 1 << 16
_RESET: Final = struct.pack("ii", 1, 0)
# By then the agent has found out and come back over another link.
_HOLE_SECONDS: Final = 20.0


class _Way:
    """One link's."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.flowing = trio.Event()
        self.flowing.set()

    async def carry(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(_PIECE):
                await self.flowing.wait()
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.scope.cancel()


class Wire:
    """Listens on `port`, leads to `relay_port`. Its methods are called from other threads."""

    def __init__(self, relay_port: int) -> None:
        self.port = free_port()
        self._relay_port = relay_port
        self._ways: list[_Way] = []
        self._refuse_until = 0.0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=[self._run], daemon=True)
        self._thread.start()
        assert self._ready.wait(LIMIT)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._scope = trio.CancelScope()
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                listeners = await trio.open_tcp_listeners(self.port, host=LOOPBACK)
                self._nursery.start_soon(trio.serve_listeners, self._serve, listeners)
                self._ready.set()

    async def _serve(self, agent: trio.SocketStream) -> None:
        agent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        async with agent:
            if trio.current_time() < self._refuse_until:
                return
            try:
                relay = await trio.open_tcp_stream(LOOPBACK, self._relay_port)
            except OSError:
                return
            relay.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            way = _Way()
            self._ways.append(way)
            async with relay:
                with way.scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(way.carry, agent, relay)
                        nursery.start_soon(way.carry, relay, agent)
            self._ways.remove(way)

    def _do(self, what: Callable[[], None]) -> None:
        trio.from_thread.run_sync(what, trio_token=self._token)

    def cut(self) -> None:
        """All links are reset."""

        def do() -> None:
            for way in self._ways:
                way.scope.cancel()

        self._do(do)

    def stall(self, seconds: float) -> None:
        """Nothing moves on the links there are, then all of it does."""
        self._do(lambda: self._stop(seconds, then=lambda way: way.flowing.set()))

    def swallow(self) -> None:
        """Nothing moves on the links there are, ever again."""
        self._do(lambda: self._stop(_HOLE_SECONDS, then=lambda way: way.scope.cancel()))

    def refuse(self, seconds: float) -> None:
        """All links are reset, and so are those that come meanwhile."""

        def do() -> None:
            self._refuse_until = trio.current_time() + seconds

        self._do(do)
        self.cut()

    def close(self) -> None:
        self._do(self._scope.cancel)
        self._thread.join(LIMIT)

    def _stop(self, seconds: float, *, then: Callable[[_Way], None]) -> None:
        async def later(ways: list[_Way]) -> None:
            await trio.sleep(seconds)
            for way in ways:
                then(way)

        for way in self._ways:
            way.flowing = trio.Event()
        self._nursery.start_soon(later, list(self._ways))
