from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio.testing

from protocol.errors import SessionLost
from protocol.session.events import StreamOpened
from protocol.session.session import Session
from protocol.transport.sockets import receive_exactly, send_all
from relay_server.agents.listener import Listener
from relay_server.agents.visits import visit
from tests.support.ends import LIMITS
from tests.support.log_records import told
from tests.support.ports import free_port
from tests.support.relay import BEGIN, Relay, running, serving
from tests.support.sockets import caller_of, receive_to_end, tcp_pair, was_reset
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


async def test_a_visitor_is_joined_to_a_stream_and_told_of_by_its_address(
    relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)
    visitor, target = await router.visited(port)
    (opened,) = [one for one in router.events if isinstance(one, StreamOpened)]
    assert opened.open.source == visitor.getsockname()
    with visitor, target:
        await send_all(visitor, b"question")
        visitor.shutdown(socket.SHUT_WR)
        assert await receive_to_end(target) == b"question"
        await send_all(target, b"an answer")
        target.shutdown(socket.SHUT_WR)
        assert await receive_to_end(visitor) == b"an answer"
    await until(lambda: told(log, "visitor-out"))
    about = {"agent": "home", "service": "ssh", "source": "127.0.0.1", "stream": 1}
    assert told(log, "visitor-in") == [about]
    assert told(log, "visitor-out") == [about | {"received": 8, "sent": 9, "reset": None}]


async def test_who_comes_while_the_agent_is_away_waits_unread(
    relay: Relay, mock_clock: Clock
) -> None:
    router, port = await serving(relay)
    await router.cut()
    visitor = caller_of(port)
    await send_all(visitor, b"early")
    await until(lambda: relay.agent(router).waiting_unread)
    mock_clock.jump(relay.config.visitor_wait - 0.01)
    await quiet()
    await router.resume()
    await until(lambda: router.targets)
    with visitor:
        assert await receive_exactly(router.targets[0], 5) == b"early"
    assert relay.agent(router).waiting_unread == 0


async def test_who_waits_is_reset_when_nobody_comes(
    relay: Relay, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)
    await router.cut()
    visitor = caller_of(port)
    await until(lambda: relay.agent(router).waiting_unread)
    await quiet()
    mock_clock.jump(relay.config.visitor_wait - 0.01)
    await quiet()
    assert not told(log, "visitor-refused")
    mock_clock.jump(0.01)
    assert await was_reset(visitor)
    assert told(log, "visitor-refused") == [
        {
            "agent": "home",
            "service": "ssh",
            "source": "127.0.0.1",
            "reason": "the agent is away",
        }
    ]
    assert relay.agent(router).waiting_unread == 0


async def test_who_waits_is_let_in_by_the_next_session_once_that_publishes(relay: Relay) -> None:
    router, port = await serving(relay)
    await router.cut()
    visitor = caller_of(port)
    await until(lambda: relay.agent(router).waiting_unread)
    again = router.again()
    await again.attach()
    await quiet()
    assert relay.agent(router).waiting_unread == 1
    again.publish(port)
    await until(lambda: again.targets)
    visitor.close()


async def test_so_many_may_wait_and_no_more(
    tmp_path: Path, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, held_visitors=2) as relay:
        router, port = await serving(relay)
        await router.cut()
        held = [caller_of(port), caller_of(port)]
        await until(lambda: relay.agent(router).waiting_unread == 2)
        assert await was_reset(caller_of(port))
        (refused,) = told(log, "visitor-refused")
        assert refused["reason"] == "too many visitors wait for the agent"
        await router.resume()
        await until(lambda: len(router.targets) == 2)
        for one in held:
            one.close()
        assert relay.agent(router).waiting_unread == 0


async def test_nobody_waits_where_that_is_configured(tmp_path: Path, mock_clock: Clock) -> None:
    async with running(tmp_path, held_visitors=0) as relay:
        router, port = await serving(relay)
        await router.cut()
        assert await was_reset(caller_of(port))


async def test_more_streams_than_the_agent_takes_are_reset(
    relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)
    visitors = [(await router.visited(port))[0] for _ in range(LIMITS.streams)]
    assert await was_reset(caller_of(port))
    assert told(log, "visitor-refused")[0]["reason"] == "too many streams"
    visitors.pop().close()
    await until(lambda: relay.agent(router).endpoint is not None)
    for one in visitors:
        one.close()


async def test_when_the_stream_ids_are_used_up_the_session_ends(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)

    def used_up(*_: object) -> None:
        raise SessionLost("stream ids are used up")

    with monkeypatch.context() as patched:
        patched.setattr(Session, "open", used_up)
        assert await was_reset(caller_of(port))
    assert told(log, "visitor-refused")[0]["reason"] == "stream ids are used up"
    await until(lambda: router.ended)
    assert not (await router.resume()).resumed
    await router.serve(port)


async def test_a_visitor_who_left_before_its_turn_leaves_nothing(relay: Relay) -> None:
    router, port = await serving(relay)
    await router.cut()
    visitor = caller_of(port)
    await until(lambda: relay.agent(router).waiting_unread)
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor.close()
    await router.resume()
    await until(lambda: router.targets)
    assert await was_reset(router.targets[0])


async def test_a_socket_that_takes_no_options_is_closed(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)

    def gone(sock: socket.socket) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("relay_server.agents.visits.prepare_spliced", gone)
    with caller_of(port) as visitor:
        assert await receive_to_end(visitor) == b""
    assert not told(log, "visitor-refused")
    assert not router.targets


async def test_cancelled_where_it_waits_or_carries_the_visitor_is_reset(relay: Relay) -> None:
    router, port = await serving(relay)
    agent = relay.agent(router)
    listener = agent.ports.listeners[port]
    orphan = Listener(free_port(), "ssh")  # not published
    for at, started in ((listener, lambda: router.targets), (orphan, lambda: agent.waiting_unread)):
        visitor, accepted = tcp_pair()
        visitor.send(BEGIN)  # a visitor that says nothing is held first
        async with trio.open_nursery() as nursery:
            source = ("203.0.113.9", 1)
            nursery.start_soon(visit, agent, at, accepted, source)
            await until(started)
            nursery.cancel_scope.cancel()
        assert await was_reset(visitor)
        assert accepted.fileno() < 0
    assert agent.waiting_unread == 0


async def test_who_is_accepted_as_the_port_closes_is_reset_at_once(
    relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)
    agent = relay.agent(router)
    listener = agent.ports.listeners[port]
    visitor, accepted = tcp_pair()
    agent.ports._on_visitor(listener, accepted, ("203.0.113.9", 1))
    agent.ports.close(listener, "withdrawn")
    assert await was_reset(visitor)
    assert told(log, "visitor-refused")[0]["reason"] == "the port is closed"


async def test_a_session_that_ends_as_the_visitor_is_woken_leaves_it_waiting(
    relay: Relay, mock_clock: Clock
) -> None:
    router, port = await serving(relay)
    await router.cut()
    visitor = caller_of(port)
    await until(lambda: relay.agent(router).waiting_unread)
    agent = relay.agent(router)
    agent.notify()
    agent.end_session()
    await quiet()
    assert agent.waiting_unread == 1
    visitor.close()
