"""Visitors under the guard: who is evicted, and what is held against a source."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio.testing

from protocol.errors import ResetCode
from protocol.transport.sockets import receive_exactly, send_all
from relay_server.agents.reasons import Refusal
from relay_server.guard.guard import ESTABLISHED_BYTES, LOGIN_GRACE
from relay_server.guard.rules import FOR_SSH, GuardTable
from tests.support.log_records import told
from tests.support.relay import (
    BEGIN,
    STRANGER,
    Relay,
    come,
    failures,
    running,
    serving,
    visited_by,
)
from tests.support.sockets import receive_to_end, was_reset
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


async def test_one_unauthenticated_visitor_too_many_evicts_another(
    relay: Relay, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)
    pairs = [await visited_by(relay, router, port) for _ in range(4)]
    assert router.endpoint is not None
    splice = router.endpoint.splices[1]
    late = come(relay, router, port)
    await quiet()
    assert len(router.targets) == 4
    mock_clock.jump(LOGIN_GRACE)
    assert await was_reset(pairs[0][0])
    assert await was_reset(pairs[0][1])
    assert splice.reset_by_peer == "refused"
    await until(lambda: len(router.targets) == 5)
    await until(lambda: told(log, "visitor-evicted"))
    about = {"agent": "home", "service": "ssh", "source": STRANGER}
    assert told(log, "visitor-evicted") == [about | {"received": len(BEGIN), "sent": 0}]
    assert not told(log, "visitor-out")
    assert relay.agent(router).refused == {Refusal.EVICTED: 1}
    assert failures(relay, router, port) == 0.0
    for one in (late, *(visitor for visitor, _ in pairs[1:])):
        one.close()


async def test_an_established_visitor_stays_whoever_comes(relay: Relay, mock_clock: Clock) -> None:
    router, port = await serving(relay)
    visitor, target = await visited_by(relay, router, port)
    await send_all(visitor, bytes(ESTABLISHED_BYTES))
    await receive_exactly(target, ESTABLISHED_BYTES)
    crowd = [come(relay, router, port) for _ in range(40)]
    for _ in range(20):
        await quiet()
        mock_clock.jump(1.0)
    assert relay.agent(router).refused[Refusal.EVICTED] >= 10
    await send_all(target, b"still here")
    assert await receive_exactly(visitor, 10) == b"still here"
    for one in (visitor, *crowd):
        one.close()


async def test_who_waits_for_the_agent_can_be_evicted(relay: Relay, mock_clock: Clock) -> None:
    router, port = await serving(relay)
    await router.cut()
    waiting = []
    for _ in range(4):
        waiting.append(come(relay, router, port))
        await until(lambda: relay.agent(router).waiting_unread == len(waiting))
    mock_clock.jump(LOGIN_GRACE)
    late = come(relay, router, port)
    assert await was_reset(waiting[0])
    await until(lambda: relay.agent(router).waiting_unread == 4)
    for one in (late, *waiting[1:]):
        one.close()


async def test_of_those_who_wait_for_the_agent_the_silent_go_first(
    relay: Relay, mock_clock: Clock
) -> None:
    router, port = await serving(relay)
    await router.cut()
    begun = [come(relay, router, port) for _ in range(3)]
    silent = come(relay, router, port, says=b"")
    await until(lambda: relay.agent(router).waiting_unread == 3)
    mock_clock.jump(FOR_SSH.hold)
    await until(lambda: relay.agent(router).waiting_unread == 4)
    mock_clock.jump(LOGIN_GRACE)
    late = come(relay, router, port)
    assert await was_reset(silent)
    for one in (late, *begun):
        one.close()


async def test_a_source_may_have_so_many_established_visitors(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, guard={"ssh": GuardTable(per_source=1)}) as relay:
        router, port = await serving(relay)
        visitor, target = await visited_by(relay, router, port)
        await send_all(visitor, bytes(ESTABLISHED_BYTES))
        await receive_exactly(target, ESTABLISHED_BYTES)
        assert await was_reset(come(relay, router, port))
        refusal = Refusal.TOO_MANY_FROM_SOURCE
        await until(lambda: told(log, "visitor-refused"))
        assert told(log, "visitor-refused")[0]["reason"] == refusal.sentence
        assert relay.agent(router).refused == {refusal: 1}
        other, _ = await visited_by(relay, router, port, "203.0.113.10")
        visitor.close()
        other.close()


async def test_visitors_from_the_relay_itself_are_not_counted(relay: Relay) -> None:
    router, port = await serving(relay)
    visitors = [await router.visited(port) for _ in range(20)]
    assert not relay.agent(router).refused
    for visitor, _ in visitors:
        visitor.close()


async def test_a_visitor_that_goes_at_once_is_held_against_its_source(relay: Relay) -> None:
    router, port = await serving(relay)
    visitor, _ = await visited_by(relay, router, port)
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor.close()
    await until(lambda: failures(relay, router, port))


async def test_so_is_one_that_the_ssh_server_throws_out(relay: Relay) -> None:
    router, port = await serving(relay)
    visitor, target = await visited_by(relay, router, port)
    target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    target.close()
    assert await was_reset(visitor)
    await until(lambda: failures(relay, router, port))


# What dropbear says until it lets somebody in, and a little later.
PIECES = (538, 428, 44, 52, 100, 36, 44, 88)


@pytest.mark.parametrize(("pieces", "counts"), [(PIECES[:5], True), (PIECES, False)])
async def test_one_that_ends_with_both_directions_finished_is_not_if_it_was_let_in(
    relay: Relay, log: pytest.LogCaptureFixture, pieces: tuple[int, ...], counts: bool
) -> None:
    router, port = await serving(relay)
    visitor, target = await visited_by(relay, router, port)
    for size in pieces:
        await send_all(target, bytes(size))
        assert len(await receive_exactly(visitor, size)) == size
    for one in (visitor, target):
        one.shutdown(socket.SHUT_WR)
        await quiet()
    with visitor:
        assert not await receive_to_end(visitor)
    await until(lambda: relay.agent(router).lines[port].guard.unauthenticated == 0)
    assert bool(failures(relay, router, port)) is counts
    if not counts:
        assert told(log, "visitor-out")[0]["login"] == "seen"


async def test_endings_that_the_visitor_cannot_help_are_not(relay: Relay) -> None:
    router, port = await serving(relay)
    assert router.endpoint is not None
    visitor, _ = await visited_by(relay, router, port)
    router.endpoint.session.reset(1, ResetCode.TARGET_UNREACHABLE)
    router.endpoint.flush()
    assert await was_reset(visitor)
    visitor, _ = await visited_by(relay, router, port)
    await router.cut()
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor.close()
    await until(lambda: relay.agent(router).lines[port].guard.unauthenticated == 0)
    assert failures(relay, router, port) == 0.0


async def test_nor_is_one_that_outlived_an_outage(relay: Relay, mock_clock: Clock) -> None:
    router, port = await serving(relay)
    visitor, _ = await visited_by(relay, router, port)
    await router.cut()
    mock_clock.jump(1.0)
    await router.resume()
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor.close()
    await until(lambda: relay.agent(router).lines[port].guard.unauthenticated == 0)
    assert failures(relay, router, port) == 0.0


async def test_a_penalty_outlives_the_listener(relay: Relay) -> None:
    router, port = await serving(relay)
    visitor, _ = await visited_by(relay, router, port)
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor.close()
    await until(lambda: failures(relay, router, port))
    router.unpublish(router.confirmed[0])
    await until(lambda: port not in relay.agent(router).ports.listeners)
    await router.serve(port)
    assert failures(relay, router, port) > 0.9
