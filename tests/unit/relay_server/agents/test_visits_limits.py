"""Whom a service admits, and how many."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

import pytest
import trio.testing

from protocol.transport.sockets import receive_exactly, send_all
from relay_server.agents.reasons import Refusal
from relay_server.config import ServerConfig
from relay_server.guard.guard import ESTABLISHED_BYTES
from relay_server.guard.rules import GuardTable
from relay_server.guard.waiting_line import ARRIVALS
from relay_server.net.networks import Admission, parse_networks
from tests.support.log_records import told
from tests.support.ports import free_port
from tests.support.relay import BEGIN, STRANGER, Relay, come, running, serving, visited_by
from tests.support.sockets import receive_to_end, was_reset
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


@pytest.mark.parametrize(
    ("lists", "refusal"),
    [
        ({"deny": ["203.0.113.0/24"]}, Refusal.SOURCE_DENIED),
        ({"deny": [STRANGER], "allow": ["203.0.113.0/24"]}, Refusal.SOURCE_DENIED),
        ({"deny": [STRANGER], "penalty_exempt": [STRANGER]}, Refusal.SOURCE_DENIED),
        ({"allow": ["2001:db8::/32", "203.0.113.10"]}, Refusal.SOURCE_NOT_ALLOWED),
    ],
)
async def test_some_sources_are_refused_without_a_byte(
    tmp_path: Path, log: pytest.LogCaptureFixture, lists: dict[str, list[str]], refusal: Refusal
) -> None:
    changes = {name: parse_networks(networks) for name, networks in lists.items()}
    async with running(tmp_path, **changes) as relay:
        router, port = await serving(relay)
        assert await was_reset(come(relay, router, port))
        await until(lambda: told(log, "visitor-refused"))
        assert told(log, "visitor-refused")[0]["reason"] == refusal.sentence
        assert relay.agent(router).refused == {refusal: 1}
        assert not router.targets
        if "allow" in lists:
            visitor, _ = await visited_by(relay, router, port, "203.0.113.10")
            visitor.close()


async def test_a_port_admits_only_whom_the_registry_says_from_then_on(
    relay: Relay, mock_clock: Clock
) -> None:
    router, port = await serving(relay)
    inside, target = await visited_by(relay, router, port)
    await router.cut()
    waiting = come(relay, router, port)
    await until(lambda: relay.agent(router).waiting_unread)
    relay.registry.admit("home", Admission(allow=parse_networks(["2001:db8::/32"])))
    relay.agents.refresh()
    assert await was_reset(come(relay, router, port))
    await router.resume()
    assert await was_reset(waiting)
    assert relay.agent(router).refused == {Refusal.SOURCE_NOT_ALLOWED: 2}
    other, _ = await visited_by(relay, router, port, "2001:db8::9")
    # Who is in stays in.
    await send_all(target, b"still here")
    assert await receive_exactly(inside, 10) == b"still here"
    # Another session that publishes the port finds it as it was.
    await router.cut()
    again = router.again()
    await again.attach()
    await again.serve(port)
    assert await was_reset(come(relay, again, port))
    for one in (inside, other):
        one.close()


async def test_a_visitor_must_pass_the_lists_of_all_ports_and_of_its_own(tmp_path: Path) -> None:
    async with running(tmp_path, deny=parse_networks(["203.0.113.0/28"])) as relay:
        router, port = await serving(relay)
        relay.registry.admit("home", Admission(allow=parse_networks(["203.0.113.0/24"])))
        relay.agents.refresh()
        for host, refusal in (
            ("203.0.113.9", Refusal.SOURCE_DENIED),
            ("198.51.100.1", Refusal.SOURCE_NOT_ALLOWED),
        ):
            assert await was_reset(come(relay, router, port, host))
            assert relay.agent(router).refused[refusal] == 1
        visitor, _ = await visited_by(relay, router, port, "203.0.113.99")
        visitor.close()


async def test_refusals_are_counted_by_the_service_that_is_there_now(relay: Relay) -> None:
    router, port = await serving(relay)
    assert await was_reset(come(relay, router, port, says=b"GET "))
    router.unpublish(router.confirmed[0])
    await until(lambda: port not in relay.agent(router).ports.listeners)
    await router.serve(port, "sshd")
    assert await was_reset(come(relay, router, port, says=b"GET "))
    (entry,) = relay.agents.overview()
    refused = {"not_ssh": 1}
    assert entry["services"] == [{"service": "sshd", "port": port, "refused": refused}]
    assert entry["refused"] == refused


async def test_of_others_than_ssh_servers_only_many_of_one_source_are_too_many(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    """A browser opens six connections at once, and sends little."""
    async with running(tmp_path, guard={"web": GuardTable(per_source=20)}) as relay:
        router = relay.enrol("home", port := free_port())
        await router.attach()
        await router.serve(port, "web")
        pairs = [await visited_by(relay, router, port) for _ in range(20)]
        assert not relay.agent(router).refused
        assert await was_reset(come(relay, router, port))
        assert relay.agent(router).refused == {Refusal.TOO_MANY_FROM_SOURCE: 1}
        another, _ = await visited_by(relay, router, port, "198.51.100.1")
        for one in pairs.pop():
            one.close()
        await until(lambda: told(log, "visitor-out"))
        pairs.append(await visited_by(relay, router, port))
        for visitor in (another, *(visitor for visitor, _ in pairs)):
            visitor.close()


async def test_one_agents_crowd_leaves_room_for_the_others(tmp_path: Path) -> None:
    """At all its ports together; those who wait for it count too."""
    async with running(tmp_path, visitors_per_agent=3) as relay:
        router, other = relay.enrol("home"), relay.enrol("work")
        ports = [free_port() for _ in range(3)]
        relay.invite("home", *ports[:2])
        relay.invite("work", ports[2])
        for one, served in ((router, ports[:2]), (other, ports[2:])):
            await one.attach()
            for port in served:
                await one.serve(port, f"web{port}")
        inside = [await visited_by(relay, router, port) for port in (*ports[:2], ports[0])]
        assert await was_reset(come(relay, router, ports[1]))
        assert relay.agent(router).refused == {Refusal.TOO_MANY_OF_AGENT: 1}
        inside.append(await visited_by(relay, other, ports[2]))
        for sock in inside.pop(0):
            sock.close()
        await until(lambda: len(relay.agent(router).visits) == 2)
        await router.cut()
        waiting = come(relay, router, ports[0])
        await until(lambda: relay.agent(router).waiting_unread == 1)
        assert await was_reset(come(relay, router, ports[0]))
        for sock in (waiting, *(sock for pair in inside for sock in pair)):
            sock.close()


def test_by_default_that_is_a_quarter_of_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, most in ((65536, 16384), (1024, 256), (3, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert ServerConfig().most_visitors == most
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert ServerConfig().most_visitors > 2**31
    assert ServerConfig(visitors_per_agent=5).most_visitors == 5


async def test_the_first_table_that_fits_says_whom_a_service_admits(tmp_path: Path) -> None:
    tables = {
        "home/ssh": GuardTable(deny=parse_networks([STRANGER]), enabled=False),
        "*": GuardTable(allow=parse_networks(["2001:db8::/32"])),
    }
    async with running(tmp_path, guard=tables) as relay:
        router, port = await serving(relay)
        assert await was_reset(come(relay, router, port))
        assert relay.agent(router).refused == {Refusal.SOURCE_DENIED: 1}
        visitor, _ = await visited_by(relay, router, port, "203.0.113.10")
        visitor.close()


async def test_caps_that_change_hold_for_who_comes_next(tmp_path: Path) -> None:
    tables = {"ssh": GuardTable(per_source=2)}
    async with running(tmp_path, guard=tables) as relay:
        router, port = await serving(relay)
        visitors = []
        for _ in range(2):
            visitor, target = await visited_by(relay, router, port)
            await send_all(visitor, bytes(ESTABLISHED_BYTES))
            await receive_exactly(target, ESTABLISHED_BYTES)
            visitors.append(visitor)
        assert await was_reset(come(relay, router, port))
        tables["ssh"] = GuardTable(per_source=3)
        visitors.append((await visited_by(relay, router, port))[0])
        for visitor in visitors:
            visitor.close()


async def test_sources_that_are_not_counted_are_never_evicted(tmp_path: Path) -> None:
    async with running(tmp_path, penalty_exempt=parse_networks(["203.0.113.0/24"])) as relay:
        router, port = await serving(relay)
        visitors = [(await visited_by(relay, router, port))[0] for _ in range(20)]
        assert not relay.agent(router).refused
        for visitor in visitors:
            visitor.close()


async def test_of_many_who_come_and_go_only_the_established_are_all_told_of(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="relay_server")
    router, port = await serving(relay)
    for number in range(ARRIVALS + 3):
        visitor, target = await visited_by(relay, router, port, "127.0.0.1")
        if number == ARRIVALS:
            await send_all(visitor, bytes(ESTABLISHED_BYTES))
            await receive_exactly(target, ESTABLISHED_BYTES)
        target.close()
        with visitor:
            assert await receive_to_end(visitor) == b""
    await until(lambda: len(told(caplog, "visitor-out")) == ARRIVALS + 1)
    await quiet()
    assert len(told(caplog, "visitor-in")) == ARRIVALS
    received = [one["received"] - len(BEGIN) for one in told(caplog, "visitor-out")]
    assert received == [0] * ARRIVALS + [ESTABLISHED_BYTES]
