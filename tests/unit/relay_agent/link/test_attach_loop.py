from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.lowlevel
import trio.testing

from protocol.errors import DenialCode, ResetCode
from protocol.process.address import HostPort
from protocol.process.config import ConfigError
from protocol.process.control.client import SOCKET, ask
from protocol.process.sighup import ControllingTerminal
from protocol.process.state import StateFolder
from protocol.transport.sockets import prepare_link, receive_exactly, send_all
from protocol.wire.frame import CloseCode
from protocol.wire.hello import PREFACE_SIZE, Denial, decode_preface
from protocol.wire.noise import Handshake, StaticKey
from relay_agent.config import AgentConfig
from relay_agent.identity.agent_keys import load_agent_keys
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link import attach_loop as module
from relay_agent.link.attach import ATTACH_TIMEOUT
from relay_agent.link.attach_loop import RETRY, Agent
from relay_agent.link.backoff import CAP_WITHOUT_STREAMS, FIRST_STEP, Backoff
from relay_agent.process import run as process
from relay_agent.process.reload import Reload, Settings
from relay_agent.services.service import Service
from tests.support.agent import Highest, keys_for
from tests.support.log_records import events
from tests.support.ports import free_port
from tests.support.scripted_relay import Target, TestRelay
from tests.support.sockets import receive_to_end, was_reset
from tests.support.trio_waiting import until

KEY = StaticKey.generate()


SLACK = 0.5  # what a handshake may take on the jumping clock


@dataclass
class House:
    relay: TestRelay
    agent: Agent
    target: Target

    async def attached(self) -> None:
        """Until the relay carries a session of this agent with its service up."""
        await until(
            lambda: (
                self.relay.endpoint is not None
                and self.relay.endpoint.link is not None
                and self.agent._serving is not None
                and self.agent._serving.endpoint.link is not None
                and self.agent._serving._answers
            )
        )

    async def visit(self) -> tuple[socket.socket, socket.socket]:
        visitor = self.relay.visit(self.relay.published[-1].publication)
        accepted, _ = await self.target.accept()
        return visitor, accepted


async def silence(sock: socket.socket) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def a_house(
    *, config: AgentConfig | None = None, relay_at: RelayIdentity | None = None, begin: bool = True
) -> AsyncIterator[House]:
    target = Target()
    async with trio.open_nursery() as nursery:
        relay = TestRelay(nursery)
        nursery.start_soon(relay.serve)
        agent = Agent(
            config or AgentConfig(),
            [Service("ssh", target.address, 11111)],
            keys_for(relay_at or relay.address),
            nursery,
        )
        house = House(relay, agent, target)
        if begin:
            nursery.start_soon(agent.stay_attached)
        yield house
        nursery.cancel_scope.cancel()
    target.close()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[..., list[dict[str, Any]]]:
    caplog.set_level("DEBUG")
    return lambda name="": events(caplog, name)


Logged = Callable[..., list[dict[str, Any]]]


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
        relay._nursery.start_soon(house.agent.stay_attached)
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
        relay._nursery.start_soon(house.agent.stay_attached)
        await trio.sleep(95)
        await house.attached()
        (denied,) = logged("link-denied")
        assert denied["reason"] == f"denied with {code}"
        waited = relay.times[1] - relay.times[0]
        # The backoff's own first delay is none.
        expected = max(retry_after, RETRY.get(code, 0.0))
        assert expected <= waited <= expected + FIRST_STEP + SLACK
        assert denied["retry_in"] == expected


# Sessions


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
        assert house.agent._cap.held == 0
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
        house.relay._nursery.start_soon(house.agent.stay_attached)
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
        assert house.agent._cap.held > 50_000
        await trio.sleep_until(lost_at + keep + SLACK)
        if kept:
            await house.attached()
            assert logged("link-up")[-1]["resumed"] is True
            assert len(await receive_exactly(visitor, 50_000)) == 50_000
            await trio.sleep(2 * keep)
            assert not logged("session-expired")
        else:
            assert await was_reset(accepted)
            assert house.agent._cap.held == 0
            assert len(logged("session-expired")) == 1
            assert house.agent._session is None
        visitor.close()
        accepted.close()


async def test_an_end_that_falls_into_the_turn_of_a_new_link_does_not_happen() -> None:
    async with a_house() as house:
        await house.attached()
        keeping = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            object.__setattr__(house.agent._config, "detached_keep", 0.0)
            nursery.start_soon(house.agent._keep_session, keeping)
            keeping.cancel()
        assert house.agent._serving is not None


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
        house.agent._backoff._step = 1000.0
        await house.agent._wait(0.0, since=trio.current_time())
        assert house.agent._backoff.cap == module.CAP_WITH_STREAMS
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
        house.agent._backoff = Backoff(Highest())
        house.agent._backoff._step = 1000.0
        await house.agent._wait(0.0, since=began)
        assert trio.current_time() - began == pytest.approx(began - lost_at, abs=SLACK)


async def test_an_attempt_that_stayed_unanswered_was_pause_enough(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house(begin=False) as house:
        relay = house.relay

        relay.greetings += [silence] * 4
        house.agent._backoff._step = 1000.0
        relay._nursery.start_soon(house.agent.stay_attached)
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
        relay._nursery.start_soon(house.agent.stay_attached)
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
            await trio.sleep(module.YOUNG - SLACK)
            await relay.greet(sock)

        relay.greetings += [answer_in_a_while] * 10
        relay._nursery.start_soon(house.agent.stay_attached)
        for _ in range(8):
            await trio.sleep(0.2)
            house.agent.look_again()
        await house.attached()
        assert relay.callers == 1


async def test_a_change_while_waiting_dials_at_once(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house(begin=False) as house:
        relay = house.relay
        relay.greetings.append(relay.denying(DenialCode.BUSY, retry_after=3000.0))
        relay._nursery.start_soon(house.agent.stay_attached)
        await trio.sleep(100)
        assert relay.callers == 1
        began = trio.current_time()
        house.agent.look_again()
        await house.attached()
        assert relay.times[1] - began < SLACK


async def test_a_change_starts_a_stuck_attempt_over(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async with a_house(begin=False) as house:
        relay = house.relay

        relay.greetings.append(silence)
        relay._nursery.start_soon(house.agent.stay_attached)
        await trio.sleep(3)
        house.agent.look_again()
        await house.attached()
        assert relay.times[1] - relay.times[0] == pytest.approx(3, abs=SLACK)
        assert not logged("dial-failed")


async def test_a_change_while_attached_asks_for_a_sign_of_life(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async with a_house() as house:
        await house.attached()
        house.agent.look_again()
        await trio.sleep(10)
        assert len(logged("link-up")) == 1
        assert not logged("link-down")


# Leaving


async def test_goodbye_is_said_and_no_link_follows(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house() as house:
        await house.attached()
        await house.agent.say_goodbye()
        await until(lambda: house.relay.goodbyes)
        assert house.relay.goodbyes == [CloseCode.GONE]
        house.relay.cut()
        await trio.sleep(60)
        assert house.relay.callers == 1


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
        await house.agent.say_goodbye()
        assert left == 0
        left = 10**6
        await house.agent.say_goodbye()
        assert trio.current_time() - began == pytest.approx(module.DRAIN, abs=0.1)


async def test_without_a_link_there_is_nobody_to_tell() -> None:
    async with a_house(begin=False) as house:
        await house.agent.say_goodbye()


def never_again(agent: Agent) -> Reload:
    def fail() -> Settings:
        raise ConfigError("agent.toml: no")

    settings = Settings(config=AgentConfig(), services=[], relay=agent.relay, public_key=KEY.public)
    return Reload(settings, fail, agent)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_with_a_goodbye(
    number: signal.Signals, logged: Logged, tmp_path: Path
) -> None:
    target = Target()
    async with trio.open_nursery() as nursery:
        relay = TestRelay(nursery)
        nursery.start_soon(relay.serve)

        async def run() -> None:
            services = [Service("ssh", target.address, 11111)]
            keys = keys_for(relay.address)
            await process.serve(AgentConfig(), services, keys, StateFolder(tmp_path), never_again)
            nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        await until(lambda: relay.published and logged("service-up"))
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGHUP)
        visitor = relay.visit()
        accepted, _ = await target.accept()
        await until(lambda: logged("reload-refused"))
        os.kill(os.getpid(), number)
        assert await was_reset(accepted)
    assert relay.goodbyes == [CloseCode.GONE]
    assert logged("stopping")[0]["signal"] == number.name
    visitor.close()
    accepted.close()
    target.close()


async def test_a_terminal_that_hangs_up_ends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logged: Logged
) -> None:
    monkeypatch.setattr(ControllingTerminal, "is_gone", True)
    relay = RelayIdentity(hosts=[HostPort("127.0.0.1", 9)], key=KEY.public)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            keys, state = keys_for(relay), StateFolder(tmp_path)
            nursery.start_soon(process.serve, AgentConfig(), [], keys, state, never_again)
            await trio.testing.wait_all_tasks_blocked(0.01)
            os.kill(os.getpid(), signal.SIGHUP)
    assert logged("stopping")[0]["signal"] == "SIGHUP"


async def test_another_configuration_is_for_what_comes_next(logged: Logged) -> None:
    async with a_house() as house:
        await house.attached()
        services = [Service("web", house.target.address, 11112)]
        hosts = [*house.agent.relay.hosts, HostPort("203.0.113.9", 7022)]
        house.agent.reconfigure(AgentConfig(max_streams=7, replay=2**20), services, hosts)
        await until(lambda: len(house.relay.published) == 2)
        assert house.relay.withdrawn == [1]
        assert house.agent.relay.hosts == hosts
        assert house.agent.ways()[1:] == ["127.0.0.1", "203.0.113.9"]
        # Also for a session that begins later.
        house.relay.sessions.clear()
        house.relay.cut()
        await until(lambda: len(house.relay.published) == 3)
        assert house.relay.published[-1].service == "web"
        assert house.relay.hellos[-1].limits.streams == 7


async def test_without_a_link_a_signal_ends_it_at_once(tmp_path: Path) -> None:
    refusing = HostPort("127.0.0.1", free_port())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            relay = RelayIdentity(hosts=[refusing], key=KEY.public)
            keys, state = keys_for(relay), StateFolder(tmp_path)
            nursery.start_soon(process.serve, AgentConfig(), [], keys, state, never_again)
            await trio.testing.wait_all_tasks_blocked(0.01)
            os.kill(os.getpid(), signal.SIGTERM)


async def test_a_visitor_that_is_reset_resets_its_target() -> None:
    async with a_house() as house:
        await house.attached()
        visitor, accepted = await house.visit()
        house.relay.now.session.reset(1, ResetCode.ABORTED)
        house.relay.now.flush()
        assert await was_reset(accepted)
        visitor.close()
        accepted.close()


# Make before break


async def attach_in_doubt(house: House, *rivals: Any) -> None:
    """Attach to a relay that falls silent at once; `rivals` greet the links that follow."""
    house.relay.greetings += [house.relay.freeze, *rivals]
    house.relay._nursery.start_soon(house.agent.stay_attached)
    await trio.sleep(2.9)


async def test_a_silent_link_is_replaced_before_it_is_dead(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async with a_house(begin=False) as house:
        await attach_in_doubt(house)
        await house.attached()
        assert [each["resumed"] for each in logged("link-up")] == [False, True]
        assert [each["reason"] for each in logged("link-down")] == ["another link takes over"]
        assert len(logged("link-in-doubt")) == 1
        assert house.relay.hellos[1].epoch > house.relay.hellos[0].epoch


async def test_a_link_that_speaks_again_is_kept_and_its_rival_dropped(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    spoken = trio.Event()

    async with a_house(begin=False) as house:
        relay = house.relay

        async def speak_late(sock: socket.socket) -> None:
            arrival = await relay.welcome_and_be_silent(sock)
            await trio.sleep(2.2)
            # An ACK of the PUBLISH, as after a pause of the path.
            await arrival.link.send_frame(b"\x43\x00\x00\x00\x00" + (1).to_bytes(8, "big"))
            spoken.set()
            await trio.sleep_forever()

        async def answer_slowly(sock: socket.socket) -> None:
            await spoken.wait()
            with pytest.raises(EOFError):
                await relay.shake(sock)

        relay.greetings += [speak_late, answer_slowly]
        relay._nursery.start_soon(house.agent.stay_attached)
        await trio.sleep(3.5)
        assert len(logged("link-up")) == 1
        assert len(logged("link-alive")) == 1
        assert not logged("link-down")
        assert len(relay.hellos) == 1, "the rival never said who it is"


async def test_a_rival_under_way_outlives_the_link_that_is_found_dead(
    jumping_clock: trio.testing.MockClock, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a long path its handshake takes longer than the rest of the dying link's time."""
    monkeypatch.setattr("protocol.transport.link.tcp_info", lambda _: None)  # which acks here
    async with a_house(begin=False) as house:
        relay = house.relay

        async def answer_slowly(sock: socket.socket) -> None:
            await trio.sleep(5)
            await relay.greet(sock)

        await attach_in_doubt(house, answer_slowly)
        await trio.sleep(5)
        await house.attached()
        assert [each["reason"] for each in logged("link-down")] == ["no sign of life"]
        assert [each["resumed"] for each in logged("link-up")] == [False, True]
        assert relay.callers == 2


async def test_a_rival_that_fails_after_the_link_is_dead_is_the_attempt_that_failed(
    jumping_clock: trio.testing.MockClock, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.transport.link.tcp_info", lambda _: None)
    async with a_house(begin=False) as house:

        async def close_late(sock: socket.socket) -> None:
            await trio.sleep(5)

        await attach_in_doubt(house, close_late)
        await trio.sleep(5)
        await house.attached()
        assert len(logged("dial-failed")) == 1
        assert [each["resumed"] for each in logged("link-up")] == [False, True]
        assert house.relay.callers == 3


async def test_a_rival_that_fails_is_followed_by_another(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async def close(sock: socket.socket) -> None:
        """Before anything."""

    async with a_house(begin=False) as house:
        await attach_in_doubt(house, close)
        assert len(logged("dial-failed")) == 1
        assert not logged("link-down")
        await trio.sleep(1.0)
        await house.attached()
        assert [each["resumed"] for each in logged("link-up")] == [False, True]
        assert "no sign of life" not in str(logged("link-down"))


async def test_a_rival_that_is_lost_once_committed_leaves_the_usual_way_back(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async with a_house(begin=False) as house:

        async def vanish(sock: socket.socket) -> None:
            await house.relay.shake(sock)

        await attach_in_doubt(house, vanish)
        await house.attached()
        assert [each["resumed"] for each in logged("link-up")] == [False, True]
        assert len(house.relay.hellos) == 3
        assert house.relay.hellos[2].resume is not None


async def test_a_rival_called_off_once_committed_is_followed_by_another(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    """The network changes while the welcome is awaited: the old link is given up already."""
    async with a_house(begin=False) as house:

        async def no_answer(sock: socket.socket) -> None:
            await house.relay.shake(sock)
            await trio.sleep_forever()

        await attach_in_doubt(house, no_answer)
        await until(lambda: len(house.relay.hellos) == 2)
        await trio.sleep(module.YOUNG)
        house.agent.look_again()
        await trio.sleep(SLACK)
        await house.attached()
        assert [each["resumed"] for each in logged("link-up")] == [False, True]
        assert not logged("link-alive")
        assert len(house.relay.hellos) == 3


async def test_a_denied_rival_has_its_interval_like_any_attempt(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house(begin=False) as house:
        relay = house.relay
        await attach_in_doubt(house, relay.denying(DenialCode.DUPLICATE))
        await trio.sleep(RETRY[DenialCode.DUPLICATE] - 1)
        assert relay.callers == 2
        await trio.sleep(2)
        await house.attached()


async def test_a_rival_denied_before_it_has_committed_costs_the_link_nothing(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    """Another version answers the rival, and the link speaks again."""
    async with a_house(begin=False) as house:
        relay = house.relay

        async def speak_late(sock: socket.socket) -> None:
            arrival = await relay.welcome_and_be_silent(sock)
            await trio.sleep(4.0)
            await arrival.link.send_frame(b"\x43\x00\x00\x00\x00" + (1).to_bytes(8, "big"))
            await trio.sleep_forever()

        async def other_version(sock: socket.socket) -> None:
            prepare_link(sock)
            preface = await receive_exactly(sock, PREFACE_SIZE)
            noise = Handshake(
                suite=decode_preface(preface).suite,
                prologue=preface,
                initiator=False,
                static=relay.key,
            )
            (size,) = struct.unpack(">H", await receive_exactly(sock, 2))
            noise.read_message(await receive_exactly(sock, size))
            denial = Denial(code=DenialCode.VERSION, reason="another", retry_after=0.0)
            answer = noise.write_message(denial.encode())
            await send_all(sock, struct.pack(">H", len(answer)) + answer)

        relay.greetings += [speak_late, other_version, other_version, other_version]
        relay._nursery.start_soon(house.agent.stay_attached)
        await trio.sleep(3.9)
        assert logged("link-denied")
        assert house.agent._serving is not None
        assert not logged("link-down")


async def test_a_question_that_is_not_yet_a_doubt_commits_no_rival(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house() as house:
        await house.attached()
        assert house.agent._serving is not None
        endpoint = house.agent._serving.endpoint
        endpoint.session.probe(trio.current_time())
        assert not endpoint.in_doubt
        with pytest.raises(module._Needless):
            house.agent._commit(endpoint)


async def test_a_changed_network_cuts_the_pause_between_rivals_short(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async def close(sock: socket.socket) -> None:
        """Before anything."""

    async with a_house(begin=False) as house:
        await attach_in_doubt(house, close)
        assert house.relay.callers == 2
        house.agent.look_again()
        changed_at = trio.current_time()
        await house.attached()
        assert house.relay.times[2] - changed_at < 0.05


async def test_a_changed_network_leaves_a_link_that_answers_alone(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async with a_house() as house:
        await house.attached()
        for _ in range(3):
            house.agent.look_again()
            await trio.sleep(0.5)
        await trio.sleep(5)
        assert len(logged("link-up")) == 1
        assert not logged("link-in-doubt")


async def test_a_changed_network_over_a_dead_link_is_answered_within_a_second(
    jumping_clock: trio.testing.MockClock, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Over loopback the frozen relay's kernel acks; over a dead link nobody does.
    monkeypatch.setattr("protocol.transport.link.tcp_info", lambda _: None)
    async with a_house(begin=False) as house:
        house.relay.greetings.append(house.relay.freeze)
        house.relay._nursery.start_soon(house.agent.stay_attached)
        await until(lambda: bool(logged("link-up")))
        house.agent.look_again()
        await trio.sleep(1.2)
        await house.attached()
        assert [each["resumed"] for each in logged("link-up")] == [False, True]


def test_the_way_to_the_relay_is_watched() -> None:
    relay = RelayIdentity(
        hosts=[HostPort("vps.example.net", 7022), HostPort("203.0.113.5", 443)], key=b""
    )

    async def ways() -> list[list[str]]:
        async with trio.open_nursery() as nursery:
            agent = Agent(AgentConfig(), [], keys_for(relay), nursery)
            before = agent.ways()
            agent._relay_address = "198.51.100.7"
            return [before, agent.ways()]

    assert trio.run(ways) == [["203.0.113.5"], ["198.51.100.7", "203.0.113.5"]]


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
        house.relay._nursery.start_soon(house.agent.stay_attached)
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
        before = house.agent.status()
        assert (before["attached"], before["services"], before["streams"]) == (False, [], [])
        house.relay.greetings = [house.relay.denying(DenialCode.BUSY)]
        await house.agent._try_to_attach(house.agent._hello)
        assert house.agent.status()["failure"] == "denied with 6"


async def test_status_tells_of_link_services_and_streams() -> None:
    async with a_house() as house:
        await house.attached()
        visitor, accepted = await house.visit()
        with visitor, accepted:
            visitor.send(b"hello")
            assert await receive_exactly(accepted, 5) == b"hello"
            status = house.agent.status()
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
            await until(lambda: cast("Any", house.agent.status()["link"])["links"] == 2)
            link = house.agent.status()["link"]
            assert link["resumed"] == 1
            assert link["last_cut"]["reason"] == "closed by the other end"


async def test_it_answers_over_its_control_socket_or_runs_without(
    tmp_path: Path, logged: Logged
) -> None:
    async with a_house(begin=False) as house:
        async with trio.open_nursery() as nursery:
            agent = house.agent
            commands = process._answer_commands, agent, never_again(agent), StateFolder(tmp_path)
            nursery.start_soon(*commands)
            await until((tmp_path / SOCKET).exists)
            answer = await trio.to_thread.run_sync(ask, tmp_path / SOCKET, "status")
            assert answer is not None
            assert answer["relay"] == [str(host) for host in house.relay.address.hosts]
            nursery.cancel_scope.cancel()
        await process._answer_commands(agent, never_again(agent), StateFolder(tmp_path / "none"))
        (told,) = logged("no-control-socket")
        assert "No such file" in told["reason"]


# This agent's key is another one


async def test_a_new_key_comes_over_the_next_link_and_streams_go_on(
    logged: Logged, tmp_path: Path
) -> None:
    state = StateFolder(tmp_path)
    state.write_secret("agent.key", KEY.private.hex())
    async with a_house() as house, trio.open_nursery() as nursery:
        await house.attached()
        visitor, accepted = await house.visit()
        agent = house.agent
        nursery.start_soon(process._answer_commands, agent, never_again(agent), state)
        await until((tmp_path / SOCKET).exists)
        await trio.to_thread.run_sync(ask, tmp_path / SOCKET, "rotate-key")
        await until(lambda: len(logged("link-up")) == 2)
        own = load_agent_keys(state)
        assert (own.former is not None, own.accepted) == (True, False)
        hello = house.relay.hellos[-1]
        assert (hello.successor, hello.resume is not None) == (own.newest.public, True)
        await send_all(visitor, b"on")
        assert await receive_exactly(accepted, 2) == b"on"
        visitor.close()
        accepted.close()
        nursery.cancel_scope.cancel()


async def test_a_new_key_does_not_wait_for_the_next_attempt() -> None:
    async with a_house(begin=False) as house:
        house.relay.greetings = [house.relay.denying(DenialCode.REVOKED), house.relay.greet]
        house.relay._nursery.start_soon(house.agent.stay_attached)
        await until(lambda: house.agent._last_failure)
        await trio.testing.wait_all_tasks_blocked(0.01)
        house.agent._come_again("a new key")
        await house.attached()
