"""Parts of the agent, at work with a scripted relay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import trio
import trio.testing

from protocol.errors import LinkLost, SessionLost
from protocol.session.replay import ReplayCap
from protocol.session.session import Session
from protocol.wire.buffers import BufferPool
from protocol.wire.hello import Hello
from protocol.wire.noise import StaticKey
from relay_agent.config import AgentConfig
from relay_agent.identity.agent_keys import AgentKeys
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link.attach import attach
from relay_agent.link.relay_dialer import RelayDialer
from relay_agent.services.publisher import Publisher
from relay_agent.services.service import Service
from tests.support.scripted_relay import TestRelay
from tests.support.trio_waiting import until

KEY = StaticKey.generate()


def keys_for(relay: RelayIdentity) -> RelayDialer:
    return RelayDialer(AgentKeys(KEY), relay, remember=lambda _: None, remember_own=lambda _: None)


@asynccontextmanager
async def serving(
    *services: Service, answer: int | None = None, max_streams: int = 64
) -> AsyncIterator[tuple[Publisher, TestRelay]]:
    """One session with one link; `answer` refuses every publication."""
    config = AgentConfig()
    async with trio.open_nursery() as nursery:
        relay = TestRelay(nursery)
        if answer is not None:
            relay.answer = relay.refusing(answer)
        nursery.start_soon(relay.serve)
        hello = _hello(config)
        link, welcome = await attach(relay.address, static=KEY, hello=lambda: hello)
        pool = BufferPool()
        session = Session(
            relay=False,
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
    return Hello(instance=bytes(16), epoch=1, software="test", features=(), limits=config.limits())


class Highest(Random):
    """Draws the upper end, so that the ceilings show."""

    def uniform(self, a: float, b: float) -> float:
        return b
