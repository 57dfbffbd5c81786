from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio.testing

from protocol.errors import RefusalCode
from protocol.process.state import StateError
from protocol.transport.sockets import receive_exactly, send_all
from relay_server.agents.listener import RETRY
from relay_server.agents.public_ports import LEAST_ORPHAN_SECONDS
from tests.support.log_records import told
from tests.support.ports import LOOPBACK, free_port
from tests.support.relay import Relay, Router, running
from tests.support.sockets import caller_of, refuses, was_reset
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
async def router(relay: Relay, port: int) -> Router:
    """Attached, and granted `port`."""
    return await relay.attached("home", port)


async def refusal(router: Router) -> tuple[int, str]:
    await until(lambda: router.refused)
    refused = router.refused.pop(0)
    return refused.code, refused.reason


# PUBLISH


async def test_a_granted_port_is_opened_and_confirmed(router: Router, port: int) -> None:
    assert refuses(port)
    await router.serve(port)
    assert not refuses(port)
    assert not router.refused


async def test_what_is_not_granted_is_refused(
    router: Router, port: int, relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    others = free_port()
    relay.enrol("other", others)
    router.publish(others, "web")
    assert await refusal(router) == (
        RefusalCode.NOT_GRANTED,
        f"port {others} is not granted to home",
    )
    assert refuses(others)
    (refused,) = told(log, "publication-refused")
    assert (refused["agent"], refused["service"], refused["port"]) == ("home", "web", others)
    await router.serve(port)


async def test_a_port_that_serves_already_is_refused(router: Router, port: int) -> None:
    first = await router.serve(port)
    second = router.publish(port, "web")
    reason = f"port {port} already serves ssh"
    assert await refusal(router) == (RefusalCode.LIMIT, reason)
    router.unpublish(second)
    visitor, _ = await router.visited(port)
    visitor.close()
    assert router.confirmed == [first]


async def test_a_port_held_by_another_program_is_refused_then_confirmed_when_free(
    router: Router, port: int, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    with socket.create_server((LOOPBACK, port)):
        publication = router.publish(port)
        reason = f"another program holds port {port}"
        assert await refusal(router) == (RefusalCode.PORT_BUSY, reason)
        mock_clock.jump(RETRY)
        await quiet()
        assert not router.confirmed
    mock_clock.jump(RETRY)
    await until(lambda: router.confirmed)
    assert router.confirmed == [publication]
    visitor, _ = await router.visited(port)
    visitor.close()
    assert len(told(log, "publication-refused")) == 1


async def test_a_busy_port_is_refused_to_the_next_session_too(
    router: Router, port: int, mock_clock: Clock
) -> None:
    with socket.create_server((LOOPBACK, port)):
        router.publish(port)
        await refusal(router)
        await router.cut()
        again = router.again()
        await again.attach()
        publication = again.publish(port, "web")
        assert (await refusal(again))[0] == RefusalCode.PORT_BUSY
    mock_clock.jump(RETRY)
    await until(lambda: again.confirmed)
    assert again.confirmed == [publication]


async def test_a_busy_port_that_was_withdrawn_is_not_opened(
    router: Router, port: int, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    with socket.create_server((LOOPBACK, port)):
        publication = router.publish(port)
        await refusal(router)
        router.unpublish(publication)
        await until(lambda: told(log, "port-closed"))
    mock_clock.jump(RETRY)
    await quiet()
    assert refuses(port)
    assert not router.confirmed


async def test_a_port_that_became_free_while_detached_is_confirmed_on_return(
    router: Router, port: int, mock_clock: Clock
) -> None:
    with socket.create_server((LOOPBACK, port)):
        router.publish(port)
        await refusal(router)
        await router.cut()
    await quiet()
    mock_clock.jump(RETRY)
    await until(lambda: not refuses(port))
    assert not router.confirmed
    await router.resume()
    await until(lambda: router.confirmed)


async def test_a_port_that_cannot_be_opened_at_all_is_refused_for_good(
    router: Router, port: int, monkeypatch: pytest.MonkeyPatch, relay: Relay
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("relay_server.net.fd_store.listen", forbidden)
        router.publish(port)
        assert (await refusal(router))[0] == RefusalCode.PORT_FAILED
    assert not relay.agent(router).ports.listeners
    await router.serve(port)


async def test_a_registry_that_cannot_be_read_refuses_and_harms_nobody(
    router: Router,
    port: int,
    relay: Relay,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    def failing(key: bytes) -> None:
        raise StateError("the disk fails")

    with monkeypatch.context() as patched:
        patched.setattr(relay.registry, "agent_by_key", failing)
        router.publish(port)
        reason = "the relay cannot read its registry"
        assert await refusal(router) == (RefusalCode.PORT_FAILED, reason)
    assert told(log, "registry-failed") == [{"reason": "the disk fails"}]
    await router.serve(port)


async def test_two_agents_have_a_port_each(relay: Relay, router: Router, port: int) -> None:
    other_port = free_port()
    other = await relay.attached("other", other_port)
    await router.serve(port)
    await other.serve(other_port)
    for one, at in ((router, port), (other, other_port)):
        visitor, _ = await one.visited(at)
        visitor.close()


# UNPUBLISH and other ends


async def test_a_withdrawn_port_closes_at_once_and_its_streams_go_on(
    router: Router, port: int, log: pytest.LogCaptureFixture
) -> None:
    publication = await router.serve(port)
    visitor, target = await router.visited(port)
    router.unpublish(publication)
    await until(lambda: refuses(port))
    assert told(log, "port-closed")[0]["reason"] == "withdrawn"
    with visitor:
        await send_all(visitor, b"still here")
        assert await receive_exactly(target, 10) == b"still here"


async def test_a_port_may_be_withdrawn_and_published_in_one_breath(
    router: Router, port: int
) -> None:
    publication = await router.serve(port)
    for _ in range(3):
        router.unpublish(publication)
        publication = router.publish(port)
    await until(lambda: publication in router.confirmed)
    visitor, _ = await router.visited(port)
    visitor.close()


async def test_withdrawing_what_was_refused_closes_nothing(router: Router, port: int) -> None:
    await router.serve(port)
    second = router.publish(port)
    await refusal(router)
    router.unpublish(second)
    await quiet()
    assert not refuses(port)


async def test_what_a_new_session_does_not_publish_is_closed(
    router: Router, port: int, relay: Relay, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    await router.serve(port)
    await router.cut()
    again = router.again()
    await again.attach()
    held = caller_of(port)
    await until(lambda: relay.agent(router).waiting_unread)
    mock_clock.jump(relay.config.visitor_wait - 0.01)
    await quiet()
    assert not refuses(port)
    mock_clock.jump(0.01)
    await until(lambda: refuses(port))
    assert await was_reset(held)
    assert told(log, "port-closed")[0]["reason"] == "no longer published"


async def test_what_the_new_session_publishes_in_time_stays(
    router: Router, port: int, relay: Relay, mock_clock: Clock
) -> None:
    await router.serve(port)
    await router.cut()
    again = router.again()
    await again.attach()
    await again.serve(port)
    mock_clock.jump(relay.config.visitor_wait)
    await quiet()
    assert not refuses(port)


async def test_a_port_is_no_orphan_while_the_agent_is_away(
    router: Router, port: int, relay: Relay, mock_clock: Clock
) -> None:
    """Its PUBLISH may be on the way, and comes with the next link."""
    await router.serve(port)
    await router.cut()
    again = router.again()
    await again.attach()
    await again.cut()
    again.publish(port)
    await quiet()
    mock_clock.jump(relay.config.visitor_wait)
    await quiet()
    assert not refuses(port)
    await again.resume()
    await until(lambda: again.confirmed)
    mock_clock.jump(relay.config.visitor_wait)
    await quiet()
    assert not refuses(port)


async def test_orphans_of_a_session_that_is_over_are_left_to_the_next(
    router: Router, port: int, relay: Relay, mock_clock: Clock
) -> None:
    await router.serve(port)
    await router.cut()
    first = router.again()
    await first.attach()
    mock_clock.jump(relay.config.visitor_wait / 2)
    await first.cut()
    second = router.again()
    await second.attach()
    mock_clock.jump(relay.config.visitor_wait / 2)
    await quiet()
    assert not refuses(port)
    mock_clock.jump(relay.config.visitor_wait / 2)
    await until(lambda: refuses(port))


async def test_a_port_that_is_no_longer_granted_is_closed_and_the_agent_told(
    router: Router, port: int, relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    await router.serve(port)
    relay.take_away(port)
    relay.agents.refresh()
    assert refuses(port)
    reason = f"port {port} is no longer granted to home"
    assert await refusal(router) == (RefusalCode.NOT_GRANTED, reason)
    assert told(log, "port-closed")[0]["reason"] == "no longer granted"


async def test_a_port_that_is_no_longer_granted_is_closed_while_the_agent_is_away(
    router: Router, port: int, relay: Relay, mock_clock: Clock
) -> None:
    await router.serve(port)
    await router.cut()
    held = caller_of(port)
    await until(lambda: relay.agent(router).waiting_unread)
    relay.take_away(port)
    relay.agents.refresh()
    assert refuses(port)
    assert await was_reset(held)
    await router.resume()
    assert (await refusal(router))[0] == RefusalCode.NOT_GRANTED


async def test_a_change_that_does_not_concern_a_port_leaves_it(
    router: Router, port: int, relay: Relay
) -> None:
    await router.serve(port)
    relay.invite("home", free_port(), port)
    relay.enrol("other")
    relay.agents.refresh()
    visitor, _ = await router.visited(port)
    visitor.close()


async def test_an_orphan_that_is_no_longer_granted_is_nobodys_news(
    router: Router, port: int, relay: Relay, mock_clock: Clock
) -> None:
    await router.serve(port)
    await router.cut()
    await quiet()
    mock_clock.jump(relay.config.detached_keep_idle)
    await until(lambda: relay.agent(router).endpoint is None)
    relay.take_away(port)
    relay.agents.refresh()
    assert refuses(port)


async def test_a_relay_whose_visitors_do_not_wait_gives_a_publish_its_time(
    tmp_path: Path, mock_clock: Clock
) -> None:
    port = free_port()
    async with running(tmp_path, visitor_wait=0.0) as relay:
        router = await relay.attached("home", port)
        await router.serve(port)
        await router.cut()
        # A new session, whose PUBLISH is under way.
        await router.attach()
        await quiet()
        assert not refuses(port)
        mock_clock.jump(LEAST_ORPHAN_SECONDS)
        await until(lambda: refuses(port))
