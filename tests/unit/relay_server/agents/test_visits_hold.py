"""Visitors that are held until they begin as an SSH client does."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from protocol.transport.sockets import receive_exactly, send_all
from relay_server.agents.reasons import Refusal
from relay_server.guard.guard import SILENT_GRACE
from relay_server.guard.rules import FOR_SSH, GuardTable
from relay_server.net.networks import parse_networks
from tests.support.log_records import told
from tests.support.relay import STRANGER, Relay, come, failures, running, serving, visited_by
from tests.support.sockets import receive_to_end, was_reset
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


async def test_who_is_silent_is_held_and_then_let_in_as_it_came(
    relay: Relay, mock_clock: Clock
) -> None:
    router, port = await serving(relay)
    visitor = come(relay, router, port, says=b"")
    await quiet()
    mock_clock.jump(FOR_SSH.hold - 0.01)
    await quiet()
    assert not router.targets
    mock_clock.jump(0.01)
    await until(lambda: router.targets)
    (target,) = router.targets
    with visitor:
        await send_all(target, b"SSH-2.0-server\r\n")
        await receive_exactly(visitor, 16)
        await send_all(visitor, b"SSH-2.0-client\r\n")
        assert await receive_exactly(target, 16) == b"SSH-2.0-client\r\n"


async def test_who_begins_in_the_middle_of_the_hold_is_let_in_with_all_it_said(
    relay: Relay, mock_clock: Clock
) -> None:
    router, port = await serving(relay)
    visitor = come(relay, router, port, says=b"SS")
    await quiet()
    mock_clock.jump(FOR_SSH.hold / 2)
    await quiet()
    assert not router.targets
    await send_all(visitor, b"H-2.0-client\r\n" + bytes(60_000))
    visitor.shutdown(socket.SHUT_WR)
    await until(lambda: router.targets)
    assert await receive_to_end(router.targets[0]) == b"SSH-2.0-client\r\n" + bytes(60_000)
    visitor.close()


@pytest.mark.parametrize(
    ("says", "refusal"),
    [
        (b"GET / HTTP/1.1\r\n", Refusal.NOT_SSH),
        (b"\x16\x03\x01\x02\x00\x01", Refusal.NOT_SSH),
        (b"PROXY TCP4 ", Refusal.NOT_SSH),
        (b"", Refusal.GONE_SILENT),
        (b"SSH", Refusal.NOT_SSH),
    ],
)
async def test_who_begins_otherwise_or_ends_never_reaches_the_router(
    relay: Relay, log: pytest.LogCaptureFixture, says: bytes, refusal: Refusal
) -> None:
    router, port = await serving(relay)
    visitor = come(relay, router, port, says=says)
    visitor.shutdown(socket.SHUT_WR)
    assert await was_reset(visitor)
    await until(lambda: told(log, "visitor-refused"))
    assert told(log, "visitor-refused")[0]["reason"] == refusal.sentence
    assert relay.agent(router).refused == {refusal: 1}
    assert failures(relay, router, port) > 0.9
    assert not router.targets


async def test_so_do_they_not_while_the_agent_is_away(relay: Relay) -> None:
    router, port = await serving(relay)
    await router.cut()
    assert await was_reset(come(relay, router, port, says=b"GET "))
    assert relay.agent(router).waiting_unread == 0


async def test_the_hold_is_part_of_the_wait_for_the_agent(relay: Relay, mock_clock: Clock) -> None:
    router, port = await serving(relay)
    await router.cut()
    visitor = come(relay, router, port, says=b"")
    await quiet()
    mock_clock.jump(FOR_SSH.hold)
    await until(lambda: relay.agent(router).waiting_unread)
    await quiet()
    mock_clock.jump(relay.config.visitor_wait - FOR_SSH.hold - 0.01)
    await quiet()
    assert relay.agent(router).waiting_unread
    mock_clock.jump(0.02)
    assert await was_reset(visitor)


async def test_who_is_held_takes_a_place_and_can_be_evicted(
    relay: Relay, mock_clock: Clock
) -> None:
    router, port = await serving(relay)
    held = []
    for _ in range(4):
        held.append(come(relay, router, port, says=b""))
        await quiet()
    mock_clock.jump(SILENT_GRACE)
    late, _ = await visited_by(relay, router, port)
    assert await was_reset(held[0])
    assert len(router.targets) == 1
    for one in (late, *held[1:]):
        one.close()


async def test_who_is_held_is_reset_at_once_when_the_port_closes(
    relay: Relay, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)
    visitor = come(relay, router, port, says=b"")
    await quiet()
    router.unpublish(router.confirmed[0])
    assert await was_reset(visitor)
    await until(lambda: told(log, "visitor-refused"))
    assert told(log, "visitor-refused")[0]["reason"] == "the port is closed"
    assert failures(relay, router, port) == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"guard": {"ssh": GuardTable(hold=0.0)}},
        {"guard": {"ssh": GuardTable(ssh=False)}},
        {"guard": {"home/*": GuardTable(enabled=False)}},
        {"penalty_exempt": parse_networks([STRANGER])},
    ],
)
async def test_nobody_is_held_or_refused_who_need_not_be_an_ssh_client(
    tmp_path: Path, mock_clock: Clock, changes: dict[str, Any]
) -> None:
    async with running(tmp_path, **changes) as relay:
        router, port = await serving(relay)
        silent = come(relay, router, port, says=b"")
        await until(lambda: len(router.targets) == 1)
        browser = come(relay, router, port, says=b"GET / ")
        await until(lambda: len(router.targets) == 2)
        assert await receive_exactly(router.targets[1], 6) == b"GET / "
        for one in (silent, browser):
            one.close()
