from __future__ import annotations

import socket

import pytest
import trio
import trio.lowlevel
import trio.testing

from protocol.errors import DenialCode, ResetCode
from protocol.process.address import HostPort
from protocol.transport.sockets import receive_exactly, send_all
from protocol.wire.frame import CloseCode
from relay_agent.config import AgentConfig
from relay_agent.link.attach_loop import RETRY
from relay_agent.link.session_holder import DRAIN
from relay_agent.services.service import Service
from tests.support.agent import SLACK, Logged, a_house
from tests.support.sockets import receive_to_end, was_reset
from tests.support.trio_waiting import until


async def test_streams_outlive_links(logged: Logged) -> None:
    async with a_house() as house:
        await house.attached()
        visitor, accepted = await house.visit()
        await send_all(visitor, b"before ")
        house.relay.cut()
        await send_all(visitor, b"after")
        assert await receive_exactly(accepted, 12) == b"before after"
        await house.attached()
        accepted.close()
        assert await receive_to_end(visitor) == b""
        visitor.close()
        assert [each["resumed"] for each in logged("link-up")] == [False, True]
        first, second = house.relay.hellos
        assert first.instance == second.instance
        assert first.epoch < second.epoch
        assert len(house.relay.published) == 1


async def test_a_relay_that_forgot_the_session_gets_a_new_one(logged: Logged) -> None:
    async with a_house() as house:
        await house.attached()
        visitor, accepted = await house.visit()
        house.relay.sessions.clear()
        house.relay.cut()
        assert await was_reset(accepted)
        await until(lambda: len(house.relay.published) == 2)
        await house.attached()
        assert house.loop._session._replay_cap.held == 0
        again, accepted_again = await house.visit()
        await send_all(again, b"x")
        assert await receive_exactly(accepted_again, 1) == b"x"
        for sock in (visitor, accepted, again, accepted_again):
            sock.close()


@pytest.mark.parametrize("code", [CloseCode.GONE, CloseCode.RESTARTING])
async def test_a_relay_that_is_gone_takes_its_session_along_and_one_that_restarts_does_not(
    code: CloseCode, logged: Logged
) -> None:
    async with a_house() as house:
        await house.attached()
        visitor, accepted = await house.visit()
        house.relay.now.session.close_link(code)
        house.relay.now.flush()
        await until(lambda: logged("relay-closing"))
        house.relay.cut()
        if code is CloseCode.GONE:
            assert await was_reset(accepted)
        await until(lambda: len(house.relay.hellos) == 2)
        assert (house.relay.hellos[1].resume is None) == (code is CloseCode.GONE)
        for sock in (visitor, accepted):
            sock.close()


async def test_a_session_that_is_not_ours_is_not_taken(logged: Logged) -> None:
    async with a_house() as house:
        await house.attached()
        _, accepted = visit = await house.visit()
        house.relay.greetings.append(house.relay.resuming(b"somebody else's!"))
        house.relay.cut()
        assert await was_reset(accepted)
        await until(lambda: logged("session-lost"))
        assert "not ours" in logged("session-lost")[0]["reason"]
        await until(lambda: len(house.relay.published) == 2)
        assert house.relay.hellos[-1].resume is None
        for sock in visit:
            sock.close()


async def test_a_first_welcome_cannot_resume(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async with a_house(begin=False) as house:
        house.relay.greetings.append(house.relay.resuming(bytes(16)))
        house.relay._nursery.start_soon(house.loop.run)
        await trio.sleep(5)
        assert len(logged("session-lost")) == 1
        await house.attached()


@pytest.mark.parametrize("code", sorted(RETRY))
async def test_a_relay_that_knows_us_no_more_has_no_session_of_ours(
    jumping_clock: trio.testing.MockClock, code: int
) -> None:
    async with a_house() as house:
        await house.attached()
        visitor, accepted = await house.visit()
        house.relay.greetings.append(house.relay.denying(code))
        began = trio.current_time()
        house.relay.cut()
        assert await was_reset(accepted)
        assert trio.current_time() - began < SLACK
        visitor.close()
        accepted.close()


@pytest.mark.parametrize("kept", [True, False])
async def test_a_session_without_a_link_is_kept_for_its_time_and_no_longer(
    jumping_clock: trio.testing.MockClock, logged: Logged, kept: bool
) -> None:
    """Whatever the attempts are up to: here, the agent has been told to wait."""
    keep = 100.0
    async with a_house(config=AgentConfig(detached_keep=keep)) as house:
        await house.attached()
        visitor, accepted = await house.visit()
        relay = house.relay
        relay.now.drop_link("cut")
        retry_after = keep - SLACK / 2 if kept else 10 * keep
        relay.greetings = [relay.denying(DenialCode.BUSY, retry_after=retry_after)]
        lost_at = trio.current_time()
        await send_all(accepted, bytes(50_000))  # nobody acks it: memory of the replay
        await trio.sleep_until(lost_at + keep - SLACK)
        assert house.loop._session._replay_cap.held > 50_000
        await trio.sleep_until(lost_at + keep + SLACK)
        if kept:
            await house.attached()
            assert logged("link-up")[-1]["resumed"] is True
            assert len(await receive_exactly(visitor, 50_000)) == 50_000
            await trio.sleep(2 * keep)
            assert not logged("session-expired")
        else:
            assert await was_reset(accepted)
            assert house.loop._session._replay_cap.held == 0
            assert len(logged("session-expired")) == 1
            assert house.loop._session.endpoint is None
        visitor.close()
        accepted.close()


async def test_an_end_that_falls_into_the_turn_of_a_new_link_does_not_happen() -> None:
    async with a_house() as house:
        await house.attached()
        keeping = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            object.__setattr__(house.loop._session._config, "detached_keep", 0.0)
            nursery.start_soon(house.loop._session._end_when_expired, keeping)
            keeping.cancel()
        assert house.loop._session.endpoint is not None


async def test_the_goodbye_waits_for_a_full_uplink_but_not_for_ever(
    jumping_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 3

    def unacked(_: socket.socket) -> int:
        nonlocal left
        left -= 1
        return left

    monkeypatch.setattr("protocol.transport.link.unacked", unacked)
    async with a_house() as house:
        await house.attached()
        began = trio.current_time()
        await house.loop.say_goodbye()
        assert left == 0
        left = 10**6
        await house.loop.say_goodbye()
        assert trio.current_time() - began == pytest.approx(DRAIN, abs=0.1)


async def test_without_a_link_there_is_nobody_to_tell() -> None:
    async with a_house(begin=False) as house:
        await house.loop.say_goodbye()


async def test_a_visitor_that_is_reset_resets_its_target() -> None:
    async with a_house() as house:
        await house.attached()
        visitor, accepted = await house.visit()
        house.relay.now.session.reset(1, ResetCode.ABORTED)
        house.relay.now.flush()
        assert await was_reset(accepted)
        visitor.close()
        accepted.close()


async def test_another_configuration_is_for_what_comes_next(logged: Logged) -> None:
    async with a_house() as house:
        await house.attached()
        services = [Service("web", house.target.address, 11112)]
        hosts = [*house.loop.relay.hosts, HostPort("203.0.113.9", 7022)]
        house.loop.reconfigure(AgentConfig(max_streams=7, replay=2**20), services, hosts)
        await until(lambda: len(house.relay.published) == 2)
        assert house.relay.withdrawn == [1]
        assert house.loop.relay.hosts == hosts
        assert house.loop.addresses()[1:] == ["127.0.0.1", "203.0.113.9"]
        # Also for a session that begins later.
        house.relay.sessions.clear()
        house.relay.cut()
        await until(lambda: len(house.relay.published) == 3)
        assert house.relay.published[-1].service == "web"
        assert house.relay.hellos[-1].limits.streams == 7
