from __future__ import annotations

import logging
import resource
import socket
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from protocol.errors import ResetCode, SessionLost
from protocol.session.events import StreamOpened
from protocol.session.session import Session
from protocol.transport.sockets import receive_exactly, send_all
from relay_server.agents.listener import Listener
from relay_server.agents.visits import EVICTED, visit
from relay_server.config import ServerConfig
from relay_server.guard.guard import GRACE, GROWN_BYTES, SILENT_GRACE
from relay_server.guard.rules import FOR_SSH, GuardTable
from relay_server.guard.waiting_line import ARRIVALS
from relay_server.net.networks import Admission, parse_networks
from tests.support.ends import LIMITS
from tests.support.log_records import told
from tests.support.ports import free_port
from tests.support.relay import BEGIN, STRANGER, Relay, Router, come, running, visited_by
from tests.support.sockets import caller_of, receive_to_end, tcp_pair, was_reset
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


async def serving(relay: Relay) -> tuple[Router, int]:
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
    return router, port


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
    listener = agent.listeners[port]
    orphan = Listener(port, "ssh")  # not published
    for at, started in ((listener, lambda: router.targets), (orphan, lambda: agent.waiting_unread)):
        visitor, accepted = tcp_pair()
        async with trio.open_nursery() as nursery:
            source = ("203.0.113.9", 1)
            nursery.start_soon(visit, relay.context, agent, at, accepted, source)
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
    listener = agent.listeners[port]
    visitor, accepted = tcp_pair()
    relay.agents.ports._on_visitor(agent, listener, accepted, ("203.0.113.9", 1))
    relay.agents.ports.close(agent, listener, "withdrawn")
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


# The guard


def score(relay: Relay, router: Router, port: int, host: str = STRANGER) -> float:
    return relay.agent(router).lines[port].guard.score(host, trio.current_time())


async def test_one_young_visitor_too_many_evicts_another(
    relay: Relay, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)
    pairs = [await visited_by(relay, router, port) for _ in range(4)]
    assert router.endpoint is not None
    splice = router.endpoint.splices[1]
    late = come(relay, router, port)
    await quiet()
    assert len(router.targets) == 4
    mock_clock.jump(GRACE)
    assert await was_reset(pairs[0][0])
    assert await was_reset(pairs[0][1])
    assert splice.reset_by_peer == "refused"
    await until(lambda: len(router.targets) == 5)
    await until(lambda: told(log, "visitor-evicted"))
    about = {"agent": "home", "service": "ssh", "source": STRANGER}
    assert told(log, "visitor-evicted") == [about | {"received": len(BEGIN), "sent": 0}]
    assert not told(log, "visitor-out")
    assert relay.agent(router).refused == {EVICTED: 1}
    assert score(relay, router, port) == 0.0
    for one in (late, *(visitor for visitor, _ in pairs[1:])):
        one.close()


async def test_an_established_visitor_stays_whoever_comes(relay: Relay) -> None:
    router, port = await serving(relay)
    visitor, target = await visited_by(relay, router, port)
    await send_all(visitor, bytes(GROWN_BYTES))
    await receive_exactly(target, GROWN_BYTES)
    crowd = [come(relay, router, port) for _ in range(40)]
    await until(lambda: relay.agent(router).refused[EVICTED] >= 10)
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
    mock_clock.jump(GRACE)
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
    mock_clock.jump(GRACE)
    late = come(relay, router, port)
    assert await was_reset(silent)
    for one in (late, *begun):
        one.close()


async def test_a_source_may_have_so_many_established_visitors(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, guard={"ssh": GuardTable(visitors_per_source=1)}) as relay:
        router, port = await serving(relay)
        visitor, target = await visited_by(relay, router, port)
        await send_all(visitor, bytes(GROWN_BYTES))
        await receive_exactly(target, GROWN_BYTES)
        assert await was_reset(come(relay, router, port))
        reason = "too many visitors from there"
        await until(lambda: told(log, "visitor-refused"))
        assert told(log, "visitor-refused")[0]["reason"] == reason
        assert relay.agent(router).refused == {reason: 1}
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
    await until(lambda: score(relay, router, port))


async def test_so_is_one_that_the_ssh_server_throws_out(relay: Relay) -> None:
    router, port = await serving(relay)
    visitor, target = await visited_by(relay, router, port)
    target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    target.close()
    assert await was_reset(visitor)
    await until(lambda: score(relay, router, port))


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
    await until(lambda: relay.agent(router).lines[port].guard.young == 0)
    assert bool(score(relay, router, port)) is counts
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
    await until(lambda: relay.agent(router).lines[port].guard.young == 0)
    assert score(relay, router, port) == 0.0


async def test_nor_is_one_that_outlived_an_outage(relay: Relay, mock_clock: Clock) -> None:
    router, port = await serving(relay)
    visitor, _ = await visited_by(relay, router, port)
    await router.cut()
    mock_clock.jump(1.0)
    await router.resume()
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor.close()
    await until(lambda: relay.agent(router).lines[port].guard.young == 0)
    assert score(relay, router, port) == 0.0


async def test_a_score_outlives_the_listener(relay: Relay) -> None:
    router, port = await serving(relay)
    visitor, _ = await visited_by(relay, router, port)
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor.close()
    await until(lambda: score(relay, router, port))
    router.unpublish(router.confirmed[0])
    await until(lambda: port not in relay.agent(router).listeners)
    await router.serve(port)
    assert score(relay, router, port) > 0.9


# The hold


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
    ("says", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "not an SSH client"),
        (b"\x16\x03\x01\x02\x00\x01", "not an SSH client"),
        (b"PROXY TCP4 ", "not an SSH client"),
        (b"", "gone without a word"),
        (b"SSH", "not an SSH client"),
    ],
)
async def test_who_begins_otherwise_or_ends_never_reaches_the_router(
    relay: Relay, log: pytest.LogCaptureFixture, says: bytes, reason: str
) -> None:
    router, port = await serving(relay)
    visitor = come(relay, router, port, says=says)
    visitor.shutdown(socket.SHUT_WR)
    assert await was_reset(visitor)
    await until(lambda: told(log, "visitor-refused"))
    assert told(log, "visitor-refused")[0]["reason"] == reason
    assert relay.agent(router).refused == {reason: 1}
    assert score(relay, router, port) > 0.9
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
    assert score(relay, router, port) == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"guard": {"ssh": GuardTable(hold=0.0)}},
        {"guard": {"ssh": GuardTable(ssh=False)}},
        {"guard": {"home/*": GuardTable(guarded=False)}},
        {"uncounted": parse_networks([STRANGER])},
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


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ({"deny": ["203.0.113.0/24"]}, "the source is denied"),
        ({"deny": [STRANGER], "allow": ["203.0.113.0/24"]}, "the source is denied"),
        ({"deny": [STRANGER], "uncounted": [STRANGER]}, "the source is denied"),
        ({"allow": ["2001:db8::/32", "203.0.113.10"]}, "the source is not allowed"),
    ],
)
async def test_some_sources_are_refused_without_a_byte(
    tmp_path: Path, log: pytest.LogCaptureFixture, lists: dict[str, list[str]], reason: str
) -> None:
    changes = {name: parse_networks(networks) for name, networks in lists.items()}
    async with running(tmp_path, **changes) as relay:
        router, port = await serving(relay)
        assert await was_reset(come(relay, router, port))
        await until(lambda: told(log, "visitor-refused"))
        assert told(log, "visitor-refused")[0]["reason"] == reason
        assert relay.agent(router).refused == {reason: 1}
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
    assert relay.agent(router).refused == {"the source is not allowed": 2}
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
        for host, reason in (
            ("203.0.113.9", "the source is denied"),
            ("198.51.100.1", "the source is not allowed"),
        ):
            assert await was_reset(come(relay, router, port, host))
            assert relay.agent(router).refused[reason] == 1
        visitor, _ = await visited_by(relay, router, port, "203.0.113.99")
        visitor.close()


async def test_refusals_are_counted_by_the_service_that_is_there_now(relay: Relay) -> None:
    router, port = await serving(relay)
    assert await was_reset(come(relay, router, port, says=b"GET "))
    router.unpublish(router.confirmed[0])
    await until(lambda: port not in relay.agent(router).listeners)
    await router.serve(port, "sshd")
    assert await was_reset(come(relay, router, port, says=b"GET "))
    (entry,) = relay.agents.overview()
    refused = {"not an SSH client": 1}
    assert entry["services"] == [{"service": "sshd", "port": port, "refused": refused}]
    assert entry["refused"] == refused


async def test_of_others_than_ssh_servers_only_many_of_one_source_are_too_many(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    """A browser opens six connections at once, and sends little."""
    async with running(tmp_path, guard={"web": GuardTable(visitors_per_source=20)}) as relay:
        router = relay.enrol("home", port := free_port())
        await router.attach()
        await router.serve(port, "web")
        pairs = [await visited_by(relay, router, port) for _ in range(20)]
        assert not relay.agent(router).refused
        assert await was_reset(come(relay, router, port))
        assert relay.agent(router).refused == {"too many visitors from there": 1}
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
        assert relay.agent(router).refused == {"too many visitors of this agent": 1}
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
        "home/ssh": GuardTable(deny=parse_networks([STRANGER]), guarded=False),
        "*": GuardTable(allow=parse_networks(["2001:db8::/32"])),
    }
    async with running(tmp_path, guard=tables) as relay:
        router, port = await serving(relay)
        assert await was_reset(come(relay, router, port))
        assert relay.agent(router).refused == {"the source is denied": 1}
        visitor, _ = await visited_by(relay, router, port, "203.0.113.10")
        visitor.close()


async def test_caps_that_change_hold_for_who_comes_next(tmp_path: Path) -> None:
    tables = {"ssh": GuardTable(visitors_per_source=2)}
    async with running(tmp_path, guard=tables) as relay:
        router, port = await serving(relay)
        visitors = []
        for _ in range(2):
            visitor, target = await visited_by(relay, router, port)
            await send_all(visitor, bytes(GROWN_BYTES))
            await receive_exactly(target, GROWN_BYTES)
            visitors.append(visitor)
        assert await was_reset(come(relay, router, port))
        tables["ssh"] = GuardTable(visitors_per_source=3)
        visitors.append((await visited_by(relay, router, port))[0])
        for visitor in visitors:
            visitor.close()


async def test_sources_that_are_not_counted_are_never_evicted(tmp_path: Path) -> None:
    async with running(tmp_path, uncounted=parse_networks(["203.0.113.0/24"])) as relay:
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
            await send_all(visitor, bytes(GROWN_BYTES))
            await receive_exactly(target, GROWN_BYTES)
        target.close()
        with visitor:
            assert await receive_to_end(visitor) == b""
    await until(lambda: len(told(caplog, "visitor-out")) == ARRIVALS + 1)
    await quiet()
    assert len(told(caplog, "visitor-in")) == ARRIVALS
    received = [one["received"] - len(BEGIN) for one in told(caplog, "visitor-out")]
    assert received == [0] * ARRIVALS + [GROWN_BYTES]
