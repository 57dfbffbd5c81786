"""Parts of the agent, at work with a scripted relay."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeAlias, cast

import trio
import trio.testing

from protocol.errors import LinkLost, SessionLost
from protocol.session.replay import ReplayCap
from protocol.session.session import Session
from protocol.session.side import Side
from protocol.wire.buffers import BufferPool
from protocol.wire.hello import Hello
from protocol.wire.identifiers import InstanceId
from protocol.wire.noise import StaticKey
from relay_agent.config import AgentConfig
from relay_agent.identity.agent_keys import AgentKeys
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link.attach import attach
from relay_agent.link.attach_loop import AttachLoop
from relay_agent.link.relay_dialer import RelayDialer
from relay_agent.services.publisher import Publisher
from relay_agent.services.service import Service
from tests.support.scripted_relay import ScriptedRelay, Target
from tests.support.trio_waiting import until

KEY = StaticKey.generate()
SLACK: Final = 0.5  # what a handshake may take on the jumping clock

# What the fixture `logged` returns: the events of a name, or all.
Logged: TypeAlias = Callable[..., list[dict[str, Any]]]


def dialer_for(relay: RelayIdentity) -> RelayDialer:
    return RelayDialer(AgentKeys(KEY), relay, save_keys=lambda _: None, save_relay=lambda _: None)


@asynccontextmanager
async def serving(
    *services: Service, answer: int | None = None, max_streams: int = 64
) -> AsyncIterator[tuple[Publisher, ScriptedRelay]]:
    """One session with one link; `answer` refuses every publication."""
    config = AgentConfig()
    async with trio.open_nursery() as nursery:
        relay = ScriptedRelay(nursery)
        if answer is not None:
            relay.answer = relay.refusing(answer)
        nursery.start_soon(relay.serve)
        hello = _hello(config)
        link, welcome = await attach(relay.address, static=KEY, hello=lambda: hello)
        pool = BufferPool()
        session = Session(
            side=Side.AGENT,
            options=config.session_options(ReplayCap(config.replay), pool),
            peer=welcome.limits,
        )
        one = Publisher(session, services, max_streams=max_streams, pool=pool, nursery=nursery)

        async def carry() -> None:
            try:
                await one.endpoint.carry(link, welcome.received)
            except (LinkLost, SessionLost):
                link.close()

        nursery.start_soon(carry)
        await until(lambda: len(relay.published) == len(services))
        await trio.testing.wait_all_tasks_blocked(0.01)
        yield one, relay
        one.lose()
        await until(lambda: not one.endpoint.splices)
        nursery.cancel_scope.cancel()
    link.close()


def _hello(config: AgentConfig) -> Hello:
    return Hello(
        instance=InstanceId(bytes(16)),
        epoch=1,
        software="test",
        features=(),
        limits=config.limits(),
    )


class Highest(Random):
    """Draws the upper end, so that the ceilings show."""

    def uniform(self, a: float, b: float) -> float:
        return b


@dataclass
class House:
    relay: ScriptedRelay
    loop: AttachLoop
    target: Target

    async def attached(self) -> None:
        """Until the relay carries a session of this agent and has answered about its service."""
        await until(self._is_up)

    def _is_up(self) -> bool:
        endpoint, status = self.relay.endpoint, self.loop.status()
        if endpoint is None or endpoint.link is None or not status["attached"]:
            return False
        services = cast("list[dict[str, object]]", status["services"])
        return any(one["state"] != "asked" for one in services)

    async def visit(self) -> tuple[socket.socket, socket.socket]:
        visitor = self.relay.visit(self.relay.published[-1].publication)
        accepted, _ = await self.target.accept()
        return visitor, accepted


async def silence(sock: socket.socket) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def a_house(
    *, config: AgentConfig | None = None, relay_at: RelayIdentity | None = None, begin: bool = True
) -> AsyncIterator[House]:
    target = Target()
    async with trio.open_nursery() as nursery:
        relay = ScriptedRelay(nursery)
        nursery.start_soon(relay.serve)
        loop = AttachLoop(
            config or AgentConfig(),
            [Service("ssh", target.address, 11111)],
            dialer_for(relay_at or relay.address),
            nursery,
        )
        house = House(relay, loop, target)
        if begin:
            nursery.start_soon(loop.run)
        yield house
        nursery.cancel_scope.cancel()
    target.close()
