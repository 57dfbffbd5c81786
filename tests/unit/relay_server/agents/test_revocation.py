"""What happens to agents when the registry changes."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import trio.testing

from protocol.errors import DenialCode, LinkDenied, LinkLost
from protocol.process.state import StateError
from protocol.wire.noise import StaticKey
from relay_server.agents.manager import PROBE_SECONDS
from tests.support.log_records import told
from tests.support.ports import free_port
from tests.support.relay import Relay, Router, is_attached, serving
from tests.support.sockets import caller_of, refuses, was_reset
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


async def test_revoking_takes_everything_at_once(
    relay: Relay, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    port, spare = free_port(), free_port()
    router = await relay.attached("home", port, spare)
    await router.serve(port)
    visitor, _target = await router.visited(port)
    orphan = caller_of(port)
    relay.registry.revoke("home", 0.0)
    relay.agents.refresh()
    assert refuses(port)
    assert await was_reset(visitor)
    assert await was_reset(orphan)
    await until(lambda: router.ended)
    assert not relay.agents.overview()
    assert told(log, "agent-revoked") == [{"agent": "home"}]
    with pytest.raises(LinkDenied) as caught:
        await router.resume()
    assert caught.value.code == DenialCode.REVOKED
    mock_clock.jump(10 * 86400)
    await quiet()


async def test_revoking_resets_visitors_who_wait(relay: Relay) -> None:
    router, port = await serving(relay)
    await router.cut()
    held = caller_of(port)
    await until(lambda: relay.agent(router).waiting_unread)
    late = caller_of(port)  # accepted by the kernel, perhaps not by us
    relay.registry.revoke("home", 0.0)
    relay.agents.refresh()
    assert await was_reset(held)
    assert await was_reset(late)


async def test_revoking_ends_a_handshake_that_waits_for_its_probe(
    relay: Relay, mock_clock: Clock
) -> None:
    router = await relay.attached(silent=True)
    newcomer = router.again()

    async def attach() -> None:
        with pytest.raises(LinkLost, match="closed"):
            await newcomer.attach()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        await quiet()
        relay.registry.revoke("home", 0.0)
        relay.agents.refresh()
    assert not relay.agents.overview()


async def test_revoked_in_the_turn_in_which_the_probe_ends(relay: Relay, mock_clock: Clock) -> None:
    router = await relay.attached(silent=True)
    newcomer = router.again()
    when = trio.current_time() + PROBE_SECONDS

    async def revoke() -> None:
        await trio.sleep_until(when)
        relay.registry.revoke("home", 0.0)
        relay.agents.refresh()

    async def attach() -> None:
        """First, or cut off: what must not be is that it stays."""
        with suppress(LinkLost):
            await newcomer.attach()
            await until(lambda: newcomer.ended)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(revoke)
        nursery.start_soon(attach)
        await quiet()
        mock_clock.jump(PROBE_SECONDS)
    assert not relay.agents.overview()


async def test_revoking_while_detached(relay: Relay, mock_clock: Clock) -> None:
    router, port = await serving(relay)
    await router.cut()
    relay.registry.revoke("home", 0.0)
    relay.agents.refresh()
    assert refuses(port)
    assert not relay.agents.overview()
    mock_clock.jump(relay.config.listener_keep)
    await quiet()


async def test_enrolling_the_name_anew_hands_the_port_over(
    relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    router, other = relay.enrol("home", port), relay.enrol("other")
    await router.attach()
    await other.attach()
    await router.serve(port)
    reset = Router(relay, StaticKey.generate())
    await reset.attach(token=relay.invite("home"))
    await until(lambda: router.ended)
    await reset.serve(port)
    visitor, _target = await reset.visited(port)
    visitor.close()
    assert [one["name"] for one in relay.agents.overview()] == ["other", "home"]
    assert is_attached(other)


async def test_a_registry_that_cannot_be_read_changes_nothing(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = await relay.attached()

    def failing(*_: object) -> None:
        raise StateError("the disk fails")

    monkeypatch.setattr(relay.registry, "agents", failing)
    with pytest.raises(StateError):
        relay.agents.refresh()
    assert is_attached(router)
