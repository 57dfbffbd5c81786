from __future__ import annotations

import pytest
import trio
import trio.testing

from protocol.session.side import Side
from protocol.transport.endpoint import Endpoint
from protocol.wire.buffers import BufferPool
from protocol.wire.hello import Hello
from protocol.wire.noise import StaticKey
from relay_server.agents.agent_state import AgentState
from relay_server.agents.attach_policy import Decision
from relay_server.agents.context import RelayContext
from relay_server.agents.listener import Listener
from relay_server.agents.reasons import Refusal
from relay_server.config import ServerConfig
from relay_server.guard.guard import Caps, Guard
from relay_server.guard.waiting_line import WaitingLine
from relay_server.net.fd_store import StoredListeners
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import RelayKeys
from tests.support.ends import LIMITS, new_session

HELLO = Hello(instance=bytes(16), epoch=1, software="test", features=(), limits=LIMITS)


def new_line(service: str) -> WaitingLine:
    return WaitingLine(
        Guard(Caps(per_source=1, unauthenticated_per_source=1, unauthenticated=1, waiting=64)),
        service,
    )


@pytest.fixture
async def agent(registry: Registry, nursery: trio.Nursery) -> AgentState:
    """Holding a session, with one published and one idle listener."""
    keys = RelayKeys(StaticKey.generate())
    context = RelayContext(ServerConfig(), registry, keys, nursery, StoredListeners())
    one = AgentState(context, b"k" * 32, "home")
    one.endpoint = Endpoint(
        new_session(Side.RELAY), pool=BufferPool(), on_event=lambda happened: None
    )
    one.ownership.accept(HELLO, b"s" * 16)
    one.ports.listeners = {1: Listener(1, "ssh"), 2: Listener(2, "web")}
    one.publications = {1: 7}
    return one


async def test_visitors_are_passed_on_while_attached_and_published(agent: AgentState) -> None:
    published, idle = agent.ports.listeners
    assert not agent.ready(published)
    agent.attached_now()
    assert agent.ready(published)
    assert not agent.ready(idle)
    agent.detached_now()
    assert not agent.ready(published)


async def test_attaching_wakes_whoever_waits(agent: AgentState) -> None:
    woken: list[int] = []

    async def wait(number: int) -> None:
        await agent.wait_change()
        woken.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(wait, number)
        await trio.testing.wait_all_tasks_blocked()
        assert not woken
        agent.attached_now()
    assert sorted(woken) == [0, 1, 2]


async def test_since_is_the_time_of_the_last_change(
    agent: AgentState, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.jump(5)
    agent.attached_now()
    began = agent.since
    mock_clock.jump(7)
    agent.detached_now()
    assert agent.since == began + 7


async def test_it_tells_of_ports_and_of_whom_the_guard_refused(agent: AgentState) -> None:
    agent.lines = {1: new_line("ssh"), 3: new_line("old")}
    agent.lines[1].refused[Refusal.SOURCE_DENIED] += 2
    agent.attached_now(resumed=True)
    status = agent.status()
    assert (status["name"], status["attached"], status["waiting"]) == ("home", True, 0)
    assert status["services"] == [
        {
            "service": service,
            "port": port,
            "state": state,
            "published": published,
            "refused": refused,
        }
        for service, port, state, published, refused in (
            ("ssh", 1, "busy", True, {"source_denied": 2}),
            ("web", 2, "busy", False, {}),
            ("old", 3, "closed", False, {}),
        )
    ]
    agent.end_session()
    assert agent.status()["streams"] == []


async def test_who_takes_over_cancels_the_one_before(agent: AgentState) -> None:
    first = agent.take_over()
    assert not first.cancel_called
    second = agent.take_over()
    assert first.cancel_called
    assert not second.cancel_called
    assert agent.keeper is second


async def test_the_end_of_the_session_leaves_the_listeners_serving_nobody(
    agent: AgentState,
) -> None:
    agent.attached_now()
    agent.end_session()
    assert agent.endpoint is None
    assert agent.link is None
    assert agent.ownership.decide(HELLO) is Decision.RENEW
    assert not agent.publications
    assert agent.ports.listeners
    assert not any(one.closed for one in agent.ports.listeners.values())
    agent.end_session()


async def test_expelled_means_everything_under_way(agent: AgentState) -> None:
    keeper, newcomer = agent.take_over(), trio.CancelScope()
    agent.newcomer = newcomer
    agent.expel()
    assert keeper.cancel_called
    assert newcomer.cancel_called
    assert agent.endpoint is None


async def test_expelled_with_nothing_under_way(agent: AgentState) -> None:
    agent.expel()
    assert agent.endpoint is None
