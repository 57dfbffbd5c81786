from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio

from protocol.process import handover as carriers
from protocol.process.config import ConfigError
from protocol.process.handover import STATE, read_state, write_state
from protocol.process.systemd import NamedDescriptor
from protocol.session.events import PeerClosing
from protocol.transport.link import Link
from protocol.wire.frame import CloseCode
from relay_server.net.fd_store import StoredListeners
from relay_server.process import handover
from relay_server.process.handover import VISITOR, Found
from tests.support.log_records import told
from tests.support.ports import free_port
from tests.support.relay import Relay, Router, running
from tests.support.sockets import caller_of, refuses, was_reset
from tests.support.trio_waiting import quiet, until


async def receive(sock: socket.socket, count: int) -> bytes:
    """Less only at the end."""
    sock.setblocking(False)
    received = b""
    while len(received) < count:
        await trio.lowlevel.wait_readable(sock.fileno())
        data = sock.recv(count - len(received))
        if not data:
            break
        received += data
    return received


@pytest.fixture
async def leftovers() -> AsyncIterator[list[socket.socket | Link]]:
    some: list[socket.socket | Link] = []
    yield some
    for one in some:
        one.close()


@pytest.fixture
def enrol(nursery: trio.Nursery, leftovers: list[socket.socket | Link]) -> Callable[..., Router]:
    """An agent that outlives its relay."""

    def make(relay: Relay, *ports: int) -> Router:
        router = relay.enrol("home", *ports)
        router.nursery, router.leftovers = nursery, leftovers
        return router

    return make


def left_by(relay: Relay) -> list[NamedDescriptor]:
    """Copies, as a carrier makes them. The relay may not go on after this."""
    return [(name, os.dup(descriptor)) for name, descriptor in handover._leave(relay.agents)]


async def resumed(router: Router, relay: Relay) -> bool:
    router.relay, router.relay_key = relay, None
    welcome = await router.resume()
    return welcome.resumed


def changed(
    left: list[NamedDescriptor], change: Callable[[dict[str, Any]], object]
) -> list[NamedDescriptor]:
    """With another state: what `change` makes of the only record."""
    state = next(descriptor for name, descriptor in left if name == STATE)
    (record,) = read_state(state)
    saved = msgpack.unpackb(record)
    change(saved)
    return [(STATE, write_state([saved])), *(one for one in left if one[0] != STATE)]


@asynccontextmanager
async def serving(
    tmp_path: Path, enrol: Callable[..., Router]
) -> AsyncIterator[tuple[Relay, Router, int]]:
    """A relay, and an agent that is attached and serves a port."""
    port = free_port()
    async with running(tmp_path) as relay:
        router = enrol(relay, port)
        await router.attach()
        await router.serve(port)
        yield relay, router, port


async def test_a_visitor_goes_on_as_if_nothing_had_been(
    tmp_path: Path, enrol: Callable[..., Router]
) -> None:
    async with serving(tmp_path, enrol) as (first, router, port):
        visitor, target = await router.visited(port)
        visitor.send(b"before")
        assert await receive(target, 6) == b"before"
        left = left_by(first)
        # What is under way when it happens: unread at the relay, and at the agent.
        visitor.send(b" to")
        target.send(b"fro")
    async with running(tmp_path, found=Found(left)) as second:
        assert second.agent(router).ports.listeners[port].open, "before the agent is back"
        assert await resumed(router, second)
        assert await receive(target, 3) == b" to"
        assert await receive(visitor, 3) == b"fro"
        agent = second.agent(router)
        assert [one.about["service"] for one in agent.visits] == ["ssh"]
        (stream,) = agent.status()["streams"]  # type: ignore[misc]
        assert (stream["from_socket"], stream["to_socket"]) == (9, 3)
        assert stream["port"] == port, "status lists it there"
        visitor.close()
        assert await receive(target, 1) == b""
        target.close()
        await until(lambda: not agent.visits)


async def test_twice_is_no_different(tmp_path: Path, enrol: Callable[..., Router]) -> None:
    async with serving(tmp_path, enrol) as (first, router, port):
        visitor, target = await router.visited(port)
        left = left_by(first)
    async with running(tmp_path, found=Found(left)) as second:
        await quiet()
        left = left_by(second)
    async with running(tmp_path, found=Found(left)) as third:
        assert await resumed(router, third)
        visitor.send(b"still here")
        assert await receive(target, 10) == b"still here"
        visitor.close()


async def test_half_closed_visitors_stay_so(tmp_path: Path, enrol: Callable[..., Router]) -> None:
    async with serving(tmp_path, enrol) as (first, router, port):
        there, far = await router.visited(port)
        here, near = await router.visited(port)
        there.shutdown(socket.SHUT_WR)
        assert await receive(far, 1) == b""
        near.shutdown(socket.SHUT_WR)
        assert await receive(here, 1) == b""
        left = left_by(first)
    async with running(tmp_path, found=Found(left)) as second:
        assert await resumed(router, second)
        far.send(b"the rest")
        assert await receive(there, 8) == b"the rest"
        here.send(b"the rest")
        assert await receive(near, 8) == b"the rest"
        far.close()
        assert await receive(there, 1) == b""
        here.close()
        assert await receive(near, 1) == b""
        await until(lambda: not second.agent(router).visits)
        there.close()
        near.close()


async def test_who_waits_for_the_agent_waits_on(
    tmp_path: Path, enrol: Callable[..., Router]
) -> None:
    async with serving(tmp_path, enrol) as (first, router, port):
        await router.cut()
        visitor = caller_of(port)
        await until(lambda: first.agent(router).waiting_unread)
        left = left_by(first)
    async with running(tmp_path, found=Found(left)) as second:
        await until(lambda: second.agent(router).waiting_unread)
        assert await resumed(router, second)
        await until(lambda: router.targets)
        router.targets[0].send(b"welcome")
        assert await receive(visitor, 7) == b"welcome"
        visitor.close()


async def test_whose_socket_did_not_come_along_is_reset(
    tmp_path: Path, enrol: Callable[..., Router], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, enrol) as (first, router, port):
        _, target = await router.visited(port)
        left = [one for one in left_by(first) if one[0] == STATE]
    async with running(tmp_path, found=Found(left)) as second:
        assert await resumed(router, second)
        assert await was_reset(target)
        assert not second.agent(router).visits
    assert not told(caplog, "visitor-lost")


async def test_an_agent_that_was_revoked_meanwhile_is_not_taken_back(
    tmp_path: Path, enrol: Callable[..., Router]
) -> None:
    async with serving(tmp_path, enrol) as (first, router, port):
        visitor, _ = await router.visited(port)
        left = left_by(first)
        first.registry.revoke("home", now=0.0)
    async with running(tmp_path, found=Found(left)) as second:
        assert await was_reset(visitor)
        assert second.agents.present == []


async def test_a_port_that_was_taken_away_meanwhile_is_not_opened(
    tmp_path: Path, enrol: Callable[..., Router]
) -> None:
    port, other = free_port(), free_port()
    async with running(tmp_path) as first:
        router = enrol(first, port, other)
        await router.attach()
        publication = await router.serve(port)
        visitor, target = await router.visited(port)
        left = left_by(first)
        first.take_away(port)
    async with running(tmp_path, found=Found(left)) as second:
        assert refuses(port)
        assert await resumed(router, second)
        await until(lambda: router.refused)
        assert router.refused[0].publication == publication
        target.send(b"streams go on")
        assert await receive(visitor, 13) == b"streams go on"
        visitor.close()


async def test_nobody_else_can_take_over_meanwhile(
    tmp_path: Path, enrol: Callable[..., Router]
) -> None:
    """Another process with the key, once the session is back, is what it always was."""
    port = free_port()
    async with running(tmp_path) as first:
        router = enrol(first, port)
        await router.attach()
        other = router.again()
        other.nursery, other.leftovers = router.nursery, router.leftovers
        await router.cut()
        await other.attach()
        left = left_by(first)
    async with running(tmp_path, found=Found(left)) as second:
        assert second.agent(router).ownership.displaced == first.agent(router).ownership.displaced
        assert await resumed(other, second)


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved.pop("key"),
        lambda saved: saved.update(key=b"short"),
        lambda saved: saved.update(colour="blue"),
        lambda saved: saved.update(publications=[{"id": 0}]),
        lambda saved: saved["publications"][0].update(colour="blue"),
        lambda saved: saved["session"].update(window=[1]),
        lambda saved: saved["session"].pop("kept"),
    ],
)
async def test_what_cannot_be_read_of_an_agent_is_reset(
    tmp_path: Path,
    enrol: Callable[..., Router],
    caplog: pytest.LogCaptureFixture,
    change: Callable[[dict[str, Any]], object],
) -> None:
    async with serving(tmp_path, enrol) as (first, router, port):
        visitor, _ = await router.visited(port)
        left = changed(left_by(first), change)
    async with running(tmp_path, found=Found(left)) as second:
        assert await was_reset(visitor)
        assert len(told(caplog, "session-lost")) == 1
        router.relay = second
        assert not (await router.resume()).resumed
        await router.serve(port)


@pytest.mark.parametrize(
    "change",
    [
        lambda visit: visit["splice"].pop("sent"),
        lambda visit: visit["splice"].update(colour="blue"),
        lambda visit: visit.update(colour="blue"),
        lambda visit: visit.pop("splice"),
        lambda visit: visit.pop("stream"),
        lambda visit: visit.update(at=0),
        lambda visit: visit.update(socket=-1),
        lambda visit: visit.update(stream=-1),
    ],
)
async def test_what_cannot_be_read_of_a_visitor_is_reset_and_others_go_on(
    tmp_path: Path,
    enrol: Callable[..., Router],
    caplog: pytest.LogCaptureFixture,
    change: Callable[[dict[str, Any]], object],
) -> None:
    async with serving(tmp_path, enrol) as (first, router, port):
        lost, far = await router.visited(port)
        visitor, target = await router.visited(port)
        left = left_by(first)

        def spoil(saved: dict[str, Any]) -> None:
            change(min(saved["visits"], key=lambda visit: int(visit["stream"])))

        left = changed(left, spoil)
    async with running(tmp_path, found=Found(left)) as second:
        assert await was_reset(lost)
        assert len(told(caplog, "visitor-lost")) == 1
        assert await resumed(router, second)
        assert await was_reset(far)
        target.send(b"fine")
        assert await receive(visitor, 4) == b"fine"
        visitor.close()


async def test_a_state_of_another_version_resets_all(
    tmp_path: Path, enrol: Callable[..., Router], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, enrol) as (first, router, port):
        visitor, _ = await router.visited(port)
        left = left_by(first)
    state = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(state, b"SRLYLEFT\x7f\xff")
    fcntl.fcntl(state, fcntl.F_ADD_SEALS, carriers._SEALS)
    os.close(next(descriptor for name, descriptor in left if name == STATE))
    left = [(STATE, state), *(one for one in left if one[0] != STATE)]
    async with running(tmp_path, found=Found(left)) as second:
        assert await was_reset(visitor)
        assert second.agents.present == []
    assert [one["reason"] for one in told(caplog, "sessions-lost")] == [
        "its format is 32767, not 1"
    ]


async def test_an_evicted_visitor_is_not_left(tmp_path: Path, enrol: Callable[..., Router]) -> None:
    async with serving(tmp_path, enrol) as (first, router, port):
        await router.visited(port)
        (visit,) = first.agent(router).visits
        visit._evict()
        left = left_by(first)
        assert [name for name, _ in left] == [STATE]
    async with running(tmp_path, found=Found(left)) as second:
        assert await resumed(router, second)
        assert not second.agent(router).visits


async def test_where_the_new_version_does_not_start_all_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refused(_: str) -> str:
        return "it does not start"

    monkeypatch.setattr(carriers, "why_not", refused)
    port = free_port()
    async with running(tmp_path) as relay:
        router = await relay.attached("home", port)
        await handover.upgrade(relay.agents, StoredListeners(), list)
        assert relay.agent(router).ownership.attached
    assert told(caplog, "upgrade-failed") == [{"reason": "it does not start"}]


async def test_with_a_configuration_that_is_wrong_all_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def read() -> None:
        raise ConfigError("server.toml: unknown key colour")

    async with running(tmp_path) as relay:
        router = relay.enrol("home", free_port())
        await router.attach()
        await handover.upgrade(relay.agents, StoredListeners(), read)
        assert relay.agent(router).ownership.attached
    assert told(caplog, "upgrade-failed") == [{"reason": "server.toml: unknown key colour"}]


async def test_where_it_cannot_take_over_agents_come_back_to_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fine(_: str) -> str:
        return ""

    def fails(_: list[NamedDescriptor]) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(carriers, "why_not", fine)
    monkeypatch.setattr(carriers, "replace_process", fails)
    port = free_port()
    async with running(tmp_path) as relay:
        router = await relay.attached("home", port)
        await router.serve(port)
        visitor, target = await router.visited(port)
        await handover.upgrade(relay.agents, StoredListeners(), list)
        await until(lambda: router.ended)
        assert (await router.resume()).resumed
        visitor.send(b"still here")
        assert await receive(target, 10) == b"still here"
        visitor.close()
        assert PeerClosing(CloseCode.RESTARTING) in router.events
    assert told(caplog, "upgrade-failed") == [{"reason": "Cannot allocate memory"}]


def test_sockets_of_others_are_passed_on(tmp_path: Path) -> None:
    with socket.socket() as one, socket.socket() as visitor:
        reader, writer = os.pipe()
        os.close(writer)
        found = Found(
            [
                ("listen-1-x", os.dup(one.fileno())),
                ("odd", reader),
                (VISITOR, os.dup(visitor.fileno())),
            ]
        )
        assert [name for name, _ in found.others] == ["listen-1-x"]
        found.others[0][1].close()
        for sock in found._visitors.values():
            sock.close()
