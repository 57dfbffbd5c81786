from __future__ import annotations

import socket
from typing import Any, cast

import pytest
import trio
import trio.lowlevel
import trio.testing

from protocol.errors import DenialCode
from protocol.process.address import HostPort
from protocol.transport.sockets import receive_exactly, send_all
from protocol.wire.frame import CloseCode
from protocol.wire.noise import StaticKey
from relay_agent.config import AgentConfig
from relay_agent.identity.agent_keys import AgentKeys
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link import attach_loop as module
from relay_agent.link.attach import ATTACH_TIMEOUT
from relay_agent.link.attach_loop import RETRY, AttachLoop
from relay_agent.link.backoff import CAP_WITHOUT_STREAMS, FIRST_STEP, Backoff
from tests.support.agent import KEY, SLACK, Highest, Logged, a_house, dialer_for, silence
from tests.support.log_records import events
from tests.support.ports import free_port
from tests.support.sockets import was_reset
from tests.support.trio_waiting import until

# The network does not end it


async def test_it_attaches_and_publishes(logged: Logged) -> None:
    async with a_house() as house:
        await house.attached()
        assert [each.service for each in house.relay.published] == ["ssh"]
        (up,) = logged("link-up")
        assert up["name"] == "home"
        assert up["relay"] == f"127.0.0.1:{house.relay.port}"
        assert up["resumed"] is False


async def test_without_a_name_or_a_relay_it_goes_on_trying(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    class NoNames(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        async def getnameinfo(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(NoNames())
    refusing = HostPort("127.0.0.1", free_port())
    relay = RelayIdentity(hosts=[HostPort("vps.example.net", 7022), refusing], key=KEY.public)
    async with a_house(relay_at=relay):
        await trio.sleep(120)
        failures = logged("dial-failed")
        assert len(failures) >= 120 / CAP_WITHOUT_STREAMS
        assert "Temporary failure" in failures[-1]["reason"]
        assert "Connection refused" in failures[-1]["reason"]


async def test_whatever_answers_it_comes_again(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async with a_house(begin=False) as house:
        relay = house.relay

        async def close(sock: socket.socket) -> None:
            """Before anything."""

        async def reset_at_once(sock: socket.socket) -> None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        async def reset_after_message_1(sock: socket.socket) -> None:
            await trio.lowlevel.wait_readable(sock.fileno())
            await reset_at_once(sock)

        async def reset_after_message_3(sock: socket.socket) -> None:
            await relay.shake(sock)
            await reset_at_once(sock)

        async def garbage(sock: socket.socket) -> None:
            await send_all(sock, b"HTTP/1.0 200 OK\r\n\r\n" * 10)
            await trio.lowlevel.wait_readable(sock.fileno())

        async def garbage_instead_of_a_welcome(sock: socket.socket) -> None:
            await relay.shake(sock)
            await send_all(sock, b"\x00\x30" + bytes(48))
            await trio.sleep_forever()

        async def no_welcome(sock: socket.socket) -> None:
            arrival = await relay.shake(sock)
            await arrival.link.send_frame(b"\x43\x00\x00\x00\x00" + bytes(8))
            await trio.sleep_forever()

        async def impossible_count(sock: socket.socket) -> None:
            arrival = await relay.shake(sock)
            await arrival.welcome(relay.welcome(bytes(16), resumed=False, received=99))
            await trio.sleep_forever()

        async def hostile_frame(sock: socket.socket) -> None:
            arrival = await relay.shake(sock)
            await arrival.welcome(relay.welcome(bytes(16), resumed=False))
            await arrival.link.send_frame(b"\x3f\x00\x00\x00\x00")
            await trio.sleep_forever()

        async def hostile_record(sock: socket.socket) -> None:
            arrival = await relay.shake(sock)
            await arrival.welcome(relay.welcome(bytes(16), resumed=False))
            await send_all(sock, b"\xff\xff" + bytes(70_000))
            await trio.sleep_forever()

        relay.greetings = [
            close,
            reset_at_once,
            reset_after_message_1,
            reset_after_message_3,
            garbage,
            silence,
            garbage_instead_of_a_welcome,
            no_welcome,
            impossible_count,
            hostile_frame,
            hostile_record,
        ]
        relay._nursery.start_soon(house.loop.run)
        await trio.sleep(200)
        await house.attached()
        assert not relay.greetings
        lost = [each["reason"] for each in logged("session-lost")]
        assert any("claims 99 frames" in reason for reason in lost)
        assert any("protocol error" in reason for reason in lost)
        assert any("protocol error" in each["reason"] for each in logged("link-down"))


@pytest.mark.parametrize("code", [*DenialCode, 99])
@pytest.mark.parametrize("retry_after", [0.0, 90.0])
async def test_each_denial_has_its_interval(
    jumping_clock: trio.testing.MockClock, logged: Logged, code: int, retry_after: float
) -> None:
    async with a_house(begin=False) as house:
        relay = house.relay
        relay.greetings.append(relay.denying(code, retry_after=retry_after))
        relay._nursery.start_soon(house.loop.run)
        await trio.sleep(95)
        await house.attached()
        (denied,) = logged("link-denied")
        assert denied["reason"] == f"denied with {code}"
        waited = relay.times[1] - relay.times[0]
        # The backoff's own first delay is none.
        expected = max(retry_after, RETRY.get(code, 0.0))
        assert expected <= waited <= expected + FIRST_STEP + SLACK
        assert denied["retry_in"] == expected


# Backoff


async def test_only_a_link_that_lasts_makes_the_next_attempt_immediate(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house() as house:
        await house.attached()
        relay = house.relay

        async def welcome_and_close(sock: socket.socket) -> None:
            arrival = await relay.shake(sock)
            await arrival.welcome(relay.welcome(bytes(16), resumed=False))
            arrival.link.close()

        relay.greetings = [welcome_and_close] * 40
        relay.cut()
        await trio.sleep(60)
        # Else there would have been a handshake in every turn.
        assert 60 / CAP_WITHOUT_STREAMS < relay.callers < 40
        relay.greetings = []
        await trio.sleep(CAP_WITHOUT_STREAMS + SLACK)
        await house.attached()
        for _ in range(3):
            await trio.sleep(module.STEADY)
            cut_at = trio.current_time()
            relay.cut()
            await house.attached()
            assert relay.times[-1] - cut_at < SLACK


async def test_with_a_shell_open_it_tries_more_often(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house() as house:
        await house.attached()
        visitor, accepted = await house.visit()
        await send_all(visitor, b"x")
        await receive_exactly(accepted, 1)
        house.loop._backoff._step = 1000.0
        await house.loop._wait(0.0, since=trio.current_time())
        assert house.loop._backoff.cap == module.CAP_WITH_STREAMS
        visitor.close()
        accepted.close()


async def test_no_pause_is_longer_than_the_absence_before_it(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house() as house:
        await house.attached()
        await trio.sleep(module.STEADY)
        lost_at = trio.current_time()
        house.relay.cut()
        await house.attached()
        await trio.sleep(module.STEADY / 2)  # the new link is not steady yet
        house.relay.greetings = [silence] * 4
        house.relay.cut()
        began = trio.current_time()
        await trio.lowlevel.checkpoint()
        house.loop._backoff = Backoff(Highest())
        house.loop._backoff._step = 1000.0
        await house.loop._wait(0.0, since=began)
        assert trio.current_time() - began == pytest.approx(began - lost_at, abs=SLACK)


async def test_an_attempt_that_stayed_unanswered_was_pause_enough(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house(begin=False) as house:
        relay = house.relay

        relay.greetings += [silence] * 4
        house.loop._backoff._step = 1000.0
        relay._nursery.start_soon(house.loop.run)
        await trio.sleep(3 * ATTACH_TIMEOUT + SLACK)
        assert [round(at - relay.times[0]) for at in relay.times] == [0, 10, 20, 30]


async def test_what_the_relay_asks_for_is_waited_from_its_answer_on(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house(begin=False) as house:
        relay = house.relay

        async def deny_late(sock: socket.socket) -> None:
            await trio.sleep(5)
            await relay.denying(DenialCode.BUSY, retry_after=7.0)(sock)

        relay.greetings.append(deny_late)
        relay._nursery.start_soon(house.loop.run)
        await trio.sleep(20)
        assert relay.times[1] - relay.times[0] == pytest.approx(12, abs=SLACK)


async def test_an_attempt_does_not_ask_for_a_session_that_expired_meanwhile(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async with a_house(config=AgentConfig(detached_keep=4.0)) as house:
        await house.attached()
        relay = house.relay
        asked = trio.Event()

        async def answer_late(sock: socket.socket) -> None:
            arrival = await relay.shake(sock)
            asked.set()
            assert arrival.hello.resume is not None
            await trio.sleep_forever()

        relay.greetings.append(answer_late)
        relay.cut()
        await asked.wait()
        await trio.sleep(4 + SLACK)
        await house.attached()
        assert relay.hellos[-1].resume is None
        assert not logged("session-lost")


# Changes of the network


async def test_a_change_leaves_a_young_attempt_alone(
    jumping_clock: trio.testing.MockClock,
) -> None:
    """A flapping interface may not keep every attempt from its end."""
    async with a_house(begin=False) as house:
        relay = house.relay

        async def answer_in_a_while(sock: socket.socket) -> None:
            await trio.sleep(module.RECENT - SLACK)
            await relay.greet(sock)

        relay.greetings += [answer_in_a_while] * 10
        relay._nursery.start_soon(house.loop.run)
        for _ in range(8):
            await trio.sleep(0.2)
            house.loop.on_network_change()
        await house.attached()
        assert relay.callers == 1


async def test_a_change_while_waiting_dials_at_once(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house(begin=False) as house:
        relay = house.relay
        relay.greetings.append(relay.denying(DenialCode.BUSY, retry_after=3000.0))
        relay._nursery.start_soon(house.loop.run)
        await trio.sleep(100)
        assert relay.callers == 1
        began = trio.current_time()
        house.loop.on_network_change()
        await house.attached()
        assert relay.times[1] - began < SLACK


async def test_a_change_starts_a_stuck_attempt_over(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async with a_house(begin=False) as house:
        relay = house.relay

        relay.greetings.append(silence)
        relay._nursery.start_soon(house.loop.run)
        await trio.sleep(3)
        house.loop.on_network_change()
        await house.attached()
        assert relay.times[1] - relay.times[0] == pytest.approx(3, abs=SLACK)
        assert not logged("dial-failed")


async def test_a_change_while_attached_asks_for_a_sign_of_life(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async with a_house() as house:
        await house.attached()
        house.loop.on_network_change()
        await trio.sleep(10)
        assert len(logged("link-up")) == 1
        assert not logged("link-down")


# Leaving


async def test_goodbye_is_said_and_no_link_follows(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house() as house:
        await house.attached()
        await house.loop.say_goodbye()
        await until(lambda: house.relay.goodbyes)
        assert house.relay.goodbyes == [CloseCode.GONE]
        house.relay.cut()
        await trio.sleep(60)
        assert house.relay.callers == 1


# Make before break


def test_the_route_to_the_relay_is_watched() -> None:
    relay = RelayIdentity(
        hosts=[HostPort("vps.example.net", 7022), HostPort("203.0.113.5", 443)], key=b""
    )

    async def addresses() -> list[list[str]]:
        async with trio.open_nursery() as nursery:
            loop = AttachLoop(AgentConfig(), [], dialer_for(relay), nursery)
            before = loop.addresses()
            loop._relay_address = "198.51.100.7"
            return [before, loop.addresses()]

    assert trio.run(addresses) == [["203.0.113.5"], ["198.51.100.7", "203.0.113.5"]]


async def test_the_same_failure_is_told_once(
    jumping_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    refusing = HostPort("127.0.0.1", free_port())
    async with a_house(relay_at=RelayIdentity(hosts=[refusing], key=KEY.public)):
        await trio.sleep(600)
        assert len(events(caplog, "dial-failed")) == 1


async def test_the_same_denial_is_told_once(
    jumping_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with a_house(begin=False) as house:
        house.relay.greetings = [house.relay.denying(DenialCode.DUPLICATE)] * 30
        house.relay._nursery.start_soon(house.loop.run)
        await trio.sleep(600)
        assert house.relay.callers > 10
        assert len(events(caplog, "link-denied")) == 1


# The relay's key is another one


async def test_told_of_a_new_key_it_comes_again_under_it_and_its_streams_go_on(
    logged: Logged,
) -> None:
    async with a_house() as house:
        relay = house.relay
        await house.attached()
        visitor, accepted = await house.visit()
        relay.keys.insert(0, StaticKey.generate())
        relay.now.drop_link("rotated")
        await until(lambda: len(relay.shown) == 3)
        await house.attached()
        old, new = relay.keys[1].public, relay.keys[0].public
        assert relay.shown == [old, old, new]
        assert [hello.epoch for hello in relay.hellos] == [1, 2, 3]
        assert all("rotation" in hello.features for hello in relay.hellos)
        assert [each["public"] for each in logged("relay-key-rotated")] == [new.hex()]
        await send_all(visitor, b"on")
        assert await receive_exactly(accepted, 2) == b"on"
        assert [each["resumed"] for each in logged("link-up")] == [False, True]
        visitor.close()
        accepted.close()


async def test_while_it_cannot_come_again_the_session_waits_and_then_ends(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    """The new key fails in the very moment; nothing is kept for ever."""
    async with a_house(config=AgentConfig(detached_keep=60.0)) as house:
        relay = house.relay
        await house.attached()
        visitor, accepted = await house.visit()
        relay.keys.insert(0, StaticKey.generate())
        relay.greetings += [relay.greet, *[silence] * 100]
        relay.now.drop_link("rotated")
        assert await was_reset(accepted)
        assert logged("session-expired")
        visitor.close()
        accepted.close()


# What it tells of itself


async def test_status_without_a_link_says_why() -> None:
    async with a_house(begin=False) as house:
        before = house.loop.status()
        assert (before["attached"], before["services"], before["streams"]) == (False, [], [])
        house.relay.greetings = [house.relay.denying(DenialCode.BUSY)]
        await house.loop._try_to_attach(house.loop._hello)
        assert house.loop.status()["failure"] == "denied with 6"


async def test_status_tells_of_link_services_and_streams() -> None:
    async with a_house() as house:
        await house.attached()
        visitor, accepted = await house.visit()
        with visitor, accepted:
            visitor.send(b"hello")
            assert await receive_exactly(accepted, 5) == b"hello"
            status = house.loop.status()
            assert (status["name"], status["attached"], status["failure"]) == ("home", True, "")
            link: Any = status["link"]
            assert link["address"] == f"127.0.0.1:{house.relay.port}"
            assert (link["links"], link["resumed"], link["last_cut"]) == (1, 0, None)
            assert status["services"] == [
                {
                    "service": "ssh",
                    "target": str(house.target.address),
                    "port": 11111,
                    "state": "open",
                    "reason": None,
                }
            ]
            (stream,) = cast("list[dict[str, object]]", status["streams"])
            assert (stream["service"], stream["source"]) == ("ssh", "203.0.113.9")
            assert (stream["from_socket"], stream["to_socket"]) == (0, 5)
            house.relay.cut()
            await until(lambda: cast("Any", house.loop.status()["link"])["links"] == 2)
            link = house.loop.status()["link"]
            assert link["resumed"] == 1
            assert link["last_cut"]["reason"] == "closed by the other end"


# This agent's key is another one


async def test_a_new_key_does_not_wait_for_the_next_attempt() -> None:
    async with a_house(begin=False) as house:
        house.relay.greetings = [house.relay.denying(DenialCode.REVOKED), house.relay.greet]
        house.relay._nursery.start_soon(house.loop.run)
        await until(lambda: house.loop._last_failure)
        await trio.testing.wait_all_tasks_blocked(0.01)
        house.loop.use_keys(AgentKeys(KEY))
        await house.attached()
