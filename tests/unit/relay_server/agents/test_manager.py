from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from protocol.errors import DenialCode
from protocol.process.address import HostPort
from protocol.transport.sockets import receive_exactly, send_all
from protocol.wire.frame import CloseCode
from protocol.wire.hello import INQUIRY, Resume
from protocol.wire.noise import StaticKey
from tests.support.log_records import told
from tests.support.ports import free_port
from tests.support.relay import Relay, Router, denied, is_attached, serving
from tests.support.sockets import was_reset
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


async def test_an_agent_attaches_and_is_told_what_is_its(
    relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    router = relay.enrol("home", port)
    welcome = await router.attach()
    assert (welcome.name, welcome.ports, welcome.resumed) == ("home", (port,), False)
    assert welcome.received == 0
    (up,) = told(log, "link-up")
    assert up["agent"] == "home"
    assert up["address"].startswith("127.0.0.1:")
    assert not up["resumed"]


async def test_streams_go_on_over_the_next_link(
    relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)
    visitor, target = await router.visited(port)
    with visitor, target:
        await router.cut()
        await send_all(visitor, b"while away")
        assert (await router.resume()).resumed
        assert await receive_exactly(target, 10) == b"while away"
        await send_all(target, b"back")
        assert await receive_exactly(visitor, 4) == b"back"
    assert [up["resumed"] for up in told(log, "link-up")] == [False, True]
    (down,) = told(log, "link-down")
    assert down["streams"] == 1


async def test_a_resume_while_attached_drops_the_old_link(relay: Relay) -> None:
    router, port = await serving(relay)
    visitor, target = await router.visited(port)
    with visitor, target:
        assert router.endpoint is not None
        router.endpoint.drop_link("another link takes over")
        assert (await router.resume()).resumed
        await send_all(visitor, b"on")
        assert await receive_exactly(target, 2) == b"on"
    assert is_attached(router)


async def test_the_relay_drops_the_link_that_the_agent_has_not_given_up(relay: Relay) -> None:
    router = await relay.attached()
    where = router.where()
    old = router.endpoint
    await router.attach(resume=where, silent=True)
    await until(lambda: router.ended)
    assert router.ended == ["closed by the other end"]
    assert is_attached(router)
    assert old is router.endpoint


async def test_two_resumes_at_once_leave_the_later_epoch(relay: Relay) -> None:
    router = await relay.attached()
    await router.cut()
    where = router.where()
    await router.attach(resume=where, epoch=3, silent=True)
    await denied(router, DenialCode.SUPERSEDED, resume=where, epoch=3)
    await denied(router, DenialCode.SUPERSEDED, resume=where, epoch=2)
    assert (await router.attach(resume=where, epoch=4)).resumed
    await quiet()
    assert is_attached(router)


async def test_a_foreign_session_id_is_a_new_session(relay: Relay) -> None:
    router, port = await serving(relay)
    visitor, _target = await router.visited(port)
    foreign = Resume(session=bytes(16), received=0)
    welcome = await router.attach(resume=foreign)
    assert not welcome.resumed
    assert welcome.session != foreign.session
    assert await was_reset(visitor)
    await quiet()
    assert is_attached(router)


@pytest.mark.parametrize("received", [1000, 2**64 - 1])
async def test_a_count_that_cannot_be_is_the_end_of_the_session(
    relay: Relay, received: int, log: pytest.LogCaptureFixture
) -> None:
    router = await relay.attached()
    await router.cut()
    where = router.where()
    await router.attach(resume=Resume(session=where.session, received=received))
    await until(lambda: relay.agent(router).endpoint is None)
    assert not (await router.resume()).resumed


async def test_a_peer_that_breaks_the_protocol_loses_its_session(
    relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    router, other = relay.enrol("home"), relay.enrol("other")
    await router.attach()
    await other.attach()
    assert router.endpoint is not None
    router.endpoint.session._outbox.queue_control(b"\x3e\0\0\0\0")
    router.endpoint.flush()
    await until(lambda: relay.agent(router).endpoint is None)
    assert "protocol error" in told(log, "link-down")[0]["reason"]
    assert is_attached(other)


async def test_the_overview(relay: Relay, mock_clock: Clock) -> None:
    router, port = await serving(relay)
    visitor, _target = await router.visited(port)
    mock_clock.jump(3.04)
    (entry,) = relay.agents.overview()
    address = entry.pop("address")
    assert str(address).startswith("127.0.0.1:")
    assert entry == {
        "name": "home",
        "attached": True,
        "since": 3.0,
        "streams": 1,
        "ports": [port],
        "refused": {},
        "services": [{"service": "ssh", "port": port, "refused": {}}],
        "following": True,
        "told": None,
    }
    await router.cut()
    (entry,) = relay.agents.overview()
    assert entry["address"] == address
    assert (entry["attached"], entry["since"], entry["streams"]) == (False, 0.0, 1)
    visitor.close()


async def test_when_the_relay_leaves_it_says_so_to_all_that_are_attached(relay: Relay) -> None:
    here, away = relay.enrol("here"), relay.enrol("away")
    await here.attach()
    await away.attach()
    await away.cut()
    relay.agents.say_goodbye(CloseCode.RESTARTING)
    await until(lambda: here.events)
    assert [getattr(one, "code", None) for one in here.events] == [CloseCode.RESTARTING]


async def test_another_configuration_holds_for_sessions_that_begin(relay: Relay) -> None:
    first, second = relay.enrol("first"), relay.enrol("second")
    before = await first.attach()
    config = replace(relay.config, max_streams=7, replay_total=32 << 20)
    former = relay.config
    relay.context.reconfigure(config)
    assert (await second.attach()).limits.streams == 7
    assert relay.context.replay_cap.limit == 32 << 20
    await first.cut()
    assert (await first.resume()).resumed
    assert before.limits.streams == former.max_streams


async def test_agents_that_listen_are_told_where_else_the_relay_is(relay: Relay) -> None:
    listening, deaf = relay.enrol("listening"), relay.enrol("deaf")
    listening.features = ("rotation", "moving")
    assert (await listening.attach()).hosts == ()
    await deaf.attach()
    relay.registry.announce([HostPort("new.example.net", 7022)])
    relay.agents.refresh()
    # It comes again, and its session goes on; the other one is left alone.
    await until(lambda: listening.ended)
    assert not deaf.ended
    welcome = await listening.resume()
    assert welcome.resumed
    assert welcome.hosts == ("new.example.net:7022",)
    relay.agents.refresh()
    await quiet()
    assert len(listening.ended) == 1
    told = {one["name"]: one["told"] for one in relay.agents.overview()}
    assert told == {"listening": True, "deaf": None}


async def test_whoever_only_asks_is_answered_and_changes_nothing(relay: Relay) -> None:
    port = free_port()
    router = relay.enrol("home", port)
    stranger = Router(relay, StaticKey.generate())
    await denied(stranger, DenialCode.UNKNOWN_AGENT, features=(INQUIRY,))
    await router.again().attach(features=(INQUIRY,), silent=True)
    assert not relay.agents._present  # nor does it become present by asking
    await router.attach()
    await router.serve(port)
    visitor, target = await router.visited(port)
    with visitor, target:
        before = relay.agent(router).ownership.session
        welcome = await router.again().attach(features=(INQUIRY,), silent=True)
        assert (welcome.name, welcome.ports) == ("home", (port,))
        assert welcome.clock is not None
        assert is_attached(router)
        assert relay.agent(router).ownership.session == before
        await send_all(visitor, b"on")
        assert await receive_exactly(target, 2) == b"on"
        # Nor while it is away, when another process would take over at once.
        await router.cut()
        await router.again().attach(features=(INQUIRY,), silent=True)
        assert (await router.resume()).resumed
        await send_all(visitor, b"back")
        assert await receive_exactly(target, 4) == b"back"
