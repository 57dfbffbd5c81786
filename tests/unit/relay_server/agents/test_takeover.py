"""Another process with the key of an agent that is here."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from protocol.errors import DenialCode, LinkDenied
from protocol.session.liveness import DEAD_AFTER, LATE
from protocol.transport.sockets import receive_exactly, send_all
from protocol.wire.frame import CloseCode
from relay_server.agents.manager import DUPLICATE_RETRY, PROBE_SECONDS
from tests.support.log_records import told
from tests.support.relay import Relay, denied, is_attached, serving
from tests.support.sockets import was_reset
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


async def test_a_restarted_agent_takes_its_port_back_at_once(relay: Relay) -> None:
    router, port = await serving(relay)
    visitor, target = await router.visited(port)
    await router.cut()
    again = router.again()
    assert not (await again.attach()).resumed
    assert await was_reset(visitor)
    await again.serve(port)
    visitor, target = await again.visited(port)
    with visitor, target:
        await send_all(visitor, b"new")
        assert await receive_exactly(target, 3) == b"new"


async def test_a_second_process_is_refused_while_the_first_lives(
    relay: Relay, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    router, port = await serving(relay)
    visitor, target = await router.visited(port)
    second = router.again()
    denial = await denied(second, DenialCode.DUPLICATE)
    assert denial.retry_after == DUPLICATE_RETRY
    assert "home" in str(denial)
    (duplicate,) = told(log, "agent-duplicate")
    assert duplicate["agent"] == "home"
    assert duplicate["instance"] == second.instance.hex()
    assert duplicate["attached"] == relay.agent(router).address
    with visitor, target:
        await send_all(visitor, b"undisturbed")
        assert await receive_exactly(target, 11) == b"undisturbed"
    assert not router.ended
    assert not told(log, "link-down")


async def test_a_process_that_is_stopped_is_taken_over_after_two_seconds(
    relay: Relay, mock_clock: Clock
) -> None:
    router = await relay.attached(silent=True)
    again = router.again()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.attach)
        await quiet()
        mock_clock.jump(PROBE_SECONDS - 0.01)
        await quiet()
        assert again.session is None
        mock_clock.jump(0.01)
    assert is_attached(again)
    # It wakes up: the session it had is another's now.
    with pytest.raises(LinkDenied) as caught:
        await router.resume()
    assert caught.value.code == DenialCode.DUPLICATE


async def test_one_byte_in_time_is_life(relay: Relay, mock_clock: Clock) -> None:
    router = await relay.attached(silent=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(denied, router.again(), DenialCode.DUPLICATE)
        await quiet()
        mock_clock.jump(PROBE_SECONDS - 0.01)
        await quiet()
        await router.carry()
    assert is_attached(router)


async def test_a_resume_during_the_probe_is_life(relay: Relay, mock_clock: Clock) -> None:
    """The agent dials anew because its path has died: silence on the old link proves nothing."""
    router = await relay.attached(silent=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(denied, router.again(), DenialCode.DUPLICATE)
        await quiet()
        mock_clock.jump(1.0)
        await quiet()
        assert (await router.resume()).resumed
    assert is_attached(router)


async def test_a_link_lost_during_the_probe_lets_the_newcomer_in_at_once(relay: Relay) -> None:
    router = await relay.attached(silent=True)
    again = router.again()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.attach)
        await quiet()
        assert router.link is not None
        router.link.close()
    assert is_attached(again)


async def test_silence_that_may_be_our_own_is_asked_about_again(
    relay: Relay, mock_clock: Clock
) -> None:
    """The relay's process was stopped: its deadline is over before it has read its sockets."""
    router = await relay.attached(silent=True)
    again = router.again()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.attach)
        await quiet()
        mock_clock.jump(DEAD_AFTER + LATE + 0.1)  # nor does the link's own timer judge
        await quiet()
        assert again.session is None
        mock_clock.jump(PROBE_SECONDS)
    assert is_attached(again)


async def test_a_newcomer_that_did_not_wait_displaces_nobody(
    relay: Relay, mock_clock: Clock
) -> None:
    router = await relay.attached(silent=True)
    newcomer = router.again()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(newcomer.attach)
        await quiet()
        nursery.cancel_scope.cancel()
    await quiet()
    mock_clock.jump(2.5)
    await quiet()
    assert is_attached(router)


async def test_the_newest_newcomer_waits_and_the_others_leave(
    relay: Relay, mock_clock: Clock
) -> None:
    router = await relay.attached(silent=True)
    first, second = router.again(), router.again()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(denied, first, DenialCode.SUPERSEDED)
        await quiet()
        mock_clock.jump(1.5)
        nursery.start_soon(second.attach)
        await quiet()
        mock_clock.jump(1.0)
        await quiet()
        assert second.session is None, "each is given its own two seconds"
        mock_clock.jump(1.0)
    assert is_attached(second)


async def test_a_displaced_process_may_come_back_once_the_winner_has_left(
    relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    router = await relay.attached()
    await router.cut()
    winner = router.again()
    await winner.attach()
    with pytest.raises(LinkDenied) as caught:
        await router.resume()
    assert caught.value.code == DenialCode.DUPLICATE
    assert len(told(log, "agent-duplicate")) == 1
    await winner.cut()
    with pytest.raises(LinkDenied):
        await router.resume()
    await winner.resume()
    winner.say_goodbye(CloseCode.GONE)
    await quiet()
    await winner.cut()
    await until(lambda: relay.agent(router).endpoint is None)
    assert not (await router.resume()).resumed
    assert is_attached(router)
