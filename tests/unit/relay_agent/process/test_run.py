from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing

from protocol.process.address import HostPort
from protocol.process.config import ConfigError
from protocol.process.control.client import SOCKET, ask
from protocol.process.sighup import ControllingTerminal
from protocol.process.state import StateFolder
from protocol.transport.sockets import receive_exactly, send_all
from protocol.wire.frame import CloseCode
from relay_agent.config import AgentConfig
from relay_agent.identity.agent_keys import load_agent_keys
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link.attach_loop import AttachLoop
from relay_agent.process.reload import Reload, Settings
from relay_agent.process.run import _Process, _serve_control, serve
from relay_agent.services.service import Service
from tests.support.agent import KEY, Logged, a_house, dialer_for
from tests.support.ports import free_port
from tests.support.scripted_relay import ScriptedRelay, Target
from tests.support.sockets import was_reset
from tests.support.trio_waiting import until


def refused_reload(loop: AttachLoop) -> Reload:
    def fail() -> Settings:
        raise ConfigError("agent.toml: no")

    settings = Settings(config=AgentConfig(), services=[], relay=loop.relay, public_key=KEY.public)
    return Reload(settings, fail, loop)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_with_a_goodbye(
    number: signal.Signals, logged: Logged, tmp_path: Path
) -> None:
    target = Target()
    async with trio.open_nursery() as nursery:
        relay = ScriptedRelay(nursery)
        nursery.start_soon(relay.serve)

        async def run() -> None:
            services = [Service("ssh", target.address, 11111)]
            dialer = dialer_for(relay.address)
            await serve(AgentConfig(), services, dialer, StateFolder(tmp_path), refused_reload)
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
            dialer, state = dialer_for(relay), StateFolder(tmp_path)
            nursery.start_soon(serve, AgentConfig(), [], dialer, state, refused_reload)
            await trio.testing.wait_all_tasks_blocked(0.01)
            os.kill(os.getpid(), signal.SIGHUP)
    assert logged("stopping")[0]["signal"] == "SIGHUP"


async def test_without_a_link_a_signal_ends_it_at_once(tmp_path: Path) -> None:
    refusing = HostPort("127.0.0.1", free_port())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            relay = RelayIdentity(hosts=[refusing], key=KEY.public)
            dialer, state = dialer_for(relay), StateFolder(tmp_path)
            nursery.start_soon(serve, AgentConfig(), [], dialer, state, refused_reload)
            await trio.testing.wait_all_tasks_blocked(0.01)
            os.kill(os.getpid(), signal.SIGTERM)


async def test_it_answers_over_its_control_socket_or_runs_without(
    tmp_path: Path, logged: Logged
) -> None:
    async with a_house(begin=False) as house:
        async with trio.open_nursery() as nursery:
            loop, state = house.loop, StateFolder(tmp_path)
            process = _Process(loop, state, refused_reload(loop), nursery)
            nursery.start_soon(_serve_control, state, process._commands())
            await until((tmp_path / SOCKET).exists)
            answer = await trio.to_thread.run_sync(ask, tmp_path / SOCKET, "status")
            assert answer is not None
            assert answer["relay"] == [str(host) for host in house.relay.address.hosts]
            nursery.cancel_scope.cancel()
        await _serve_control(StateFolder(tmp_path / "none"), {})
        (told,) = logged("no-control-socket")
        assert "No such file" in told["reason"]


async def test_a_new_key_comes_over_the_next_link_and_streams_go_on(
    logged: Logged, tmp_path: Path
) -> None:
    state = StateFolder(tmp_path)
    state.write_secret("agent.key", KEY.private.hex())
    async with a_house() as house, trio.open_nursery() as nursery:
        await house.attached()
        visitor, accepted = await house.visit()
        process = _Process(house.loop, state, refused_reload(house.loop), nursery)
        nursery.start_soon(_serve_control, state, process._commands())
        await until((tmp_path / SOCKET).exists)
        await trio.to_thread.run_sync(ask, tmp_path / SOCKET, "rotate-key")
        await until(lambda: len(logged("link-up")) == 2)
        own = load_agent_keys(state)
        assert (len(own.former), own.accepted) == (1, False)
        hello = house.relay.hellos[-1]
        assert (hello.successor, hello.resume is not None) == (own.newest.public, True)
        await send_all(visitor, b"on")
        assert await receive_exactly(accepted, 2) == b"on"
        visitor.close()
        accepted.close()
        nursery.cancel_scope.cancel()
