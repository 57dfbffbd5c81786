"""Agents that go away: what is kept of them, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from protocol.errors import LinkLost
from protocol.transport.handshake import Arrival
from protocol.wire.frame import CloseCode
from relay_server.agents.manager import Agents
from tests.support.log_records import told
from tests.support.relay import Relay, is_attached, running, serving
from tests.support.sockets import refuses, was_reset
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


async def test_a_goodbye_for_good_ends_the_session_at_once(relay: Relay, mock_clock: Clock) -> None:
    router, port = await serving(relay)
    visitor, _target = await router.visited(port)
    router.say_goodbye(CloseCode.GONE)
    # Whether or not the agent closes its link.
    assert await was_reset(visitor)
    assert relay.agent(router).endpoint is None
    assert not refuses(port), "the listener is the agent's"
    mock_clock.jump(relay.config.listener_keep - 1)
    await quiet()
    assert not refuses(port)
    mock_clock.jump(1)
    await until(lambda: refuses(port))
    assert not relay.agents.overview()


async def test_a_goodbye_before_a_restart_keeps_the_session(relay: Relay) -> None:
    router = await relay.attached()
    router.say_goodbye(CloseCode.RESTARTING)
    await quiet()
    await router.cut()
    assert (await router.resume()).resumed
    router.say_goodbye(CloseCode.GONE)
    await quiet()


async def test_a_goodbye_counts_for_its_own_link_only(relay: Relay) -> None:
    router = await relay.attached()
    where = router.where()
    router.say_goodbye(CloseCode.GONE)
    await quiet()
    await router.attach(resume=where)
    await router.cut()
    assert relay.agent(router).endpoint is not None


@pytest.mark.parametrize("streams", [True, False])
async def test_a_session_is_kept_for_a_while(
    relay: Relay, mock_clock: Clock, streams: bool, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)
    if streams:
        visitor, _target = await router.visited(port)
    await router.cut()
    keep = relay.config.detached_keep if streams else relay.config.detached_keep_idle
    mock_clock.jump(keep - 0.01)
    await quiet()
    assert relay.agent(router).endpoint is not None
    mock_clock.jump(0.01)
    await until(lambda: relay.agent(router).endpoint is None)
    assert told(log, "session-expired") == [{"agent": "home", "streams": int(streams)}]
    if streams:
        assert await was_reset(visitor)
        assert not (await router.resume()).resumed
    assert not refuses(port)


async def test_a_port_is_kept_a_day_from_the_loss_of_the_link(
    relay: Relay, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)
    await router.cut()
    await quiet()
    mock_clock.jump(relay.config.detached_keep_idle)
    await quiet()
    mock_clock.jump(relay.config.listener_keep - relay.config.detached_keep_idle - 0.01)
    await quiet()
    assert not refuses(port)
    mock_clock.jump(0.01)
    await until(lambda: refuses(port))
    assert told(log, "port-closed")[0]["reason"] == "the agent stayed away"
    assert not (await router.resume()).resumed
    await router.serve(port)


async def test_no_time_at_all_may_be_configured(tmp_path: Path, mock_clock: Clock) -> None:
    never = {"detached_keep": 0.0, "detached_keep_idle": 0.0, "listener_keep": 0.0}
    async with running(tmp_path, **never) as relay:
        router = await relay.attached()
        assert router.endpoint is not None
        router.endpoint.drop_link("cut")
        await until(lambda: not relay.agents.overview())
        assert not (await router.resume()).resumed


@pytest.mark.parametrize("session_is_over", [False, True])
@pytest.mark.parametrize("_turn", range(8))  # trio shuffles who runs first in a turn
async def test_a_return_in_the_turn_in_which_it_is_given_up(
    relay: Relay,
    mock_clock: Clock,
    session_is_over: bool,
    _turn: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who is attached afterwards stays attached, with the port it publishes."""
    router, port = await serving(relay)
    await router.cut()
    await quiet()
    session = router.session
    expiry = relay.agent(router).since + relay.config.detached_keep_idle
    if session_is_over:
        mock_clock.jump(relay.config.detached_keep_idle)
        await quiet()
        expiry = relay.agent(router).since + relay.config.listener_keep
    admit = Agents.admit

    async def admit_then(*arguments: Any) -> None:
        await trio.sleep_until(expiry)
        await admit(*arguments)

    monkeypatch.setattr(Agents, "admit", admit_then)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(router.resume)
        await quiet()
        mock_clock.jump(expiry - trio.current_time())
    await quiet()
    assert is_attached(router)
    assert relay.agent(router).endpoint is not None
    if router.session != session:
        await router.serve(port)
    visitor, _ = await router.visited(port)
    visitor.close()


async def test_a_welcome_that_cannot_be_sent_leaves_nobody_attached(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    router = relay.enrol()

    async def lost(*_: object) -> None:
        raise LinkLost("sending failed: Broken pipe")

    with monkeypatch.context() as patched:
        patched.setattr(Arrival, "welcome", lost)
        with pytest.raises(LinkLost):
            await router.attach()
    await quiet()
    assert not relay.agent(router).ownership.attached
    assert not told(log, "link-up")
    assert told(log, "link-down")[0]["reason"] == "sending failed: Broken pipe"
    await router.attach()
    assert is_attached(router)


async def test_a_denial_that_cannot_be_sent_harms_nobody(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = await relay.attached()

    async def lost(*_: object) -> None:
        raise LinkLost("sending failed: Broken pipe")

    monkeypatch.setattr(Arrival, "deny", lost)
    with pytest.raises(LinkLost):
        await router.again().attach()
    assert is_attached(router)
