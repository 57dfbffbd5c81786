"""The relay's key is another one, or an agent's."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from protocol.errors import DenialCode, LinkLost
from protocol.process.state import StateError
from protocol.transport.sockets import receive_exactly, send_all
from protocol.wire.frame import CloseCode
from protocol.wire.noise import StaticKey
from relay_server.agents.manager import PROBE_SECONDS
from relay_server.registry.registry import Registry
from tests.support.log_records import told
from tests.support.ports import free_port
from tests.support.relay import Relay, denied
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


async def test_who_comes_under_a_former_key_is_told_the_current_one(relay: Relay) -> None:
    router = relay.enrol()
    assert (await router.attach()).successor is None
    router.relay_key = relay.rotate()
    welcome = await router.resume()
    assert (welcome.resumed, welcome.successor) == (True, relay.key.public)
    assert "rotation" in welcome.features
    router.relay_key = None
    assert (await router.resume()).successor is None


async def test_who_is_here_is_asked_to_come_again_and_keeps_its_session(relay: Relay) -> None:
    port = free_port()
    router, other = relay.enrol("home", port), relay.enrol("cabin")
    other.features = ()  # it would not understand, so its link is left alone
    for each in (router, other):
        await each.attach()
    await router.serve(port)
    visitor, target = await router.visited(port)
    router.relay_key = relay.rotate()
    relay.agents.renew_links()
    await until(lambda: router.ended)
    assert [getattr(one, "code", None) for one in router.events][-1] is CloseCode.RESTARTING
    assert (await router.resume()).resumed
    await send_all(visitor, b"on")
    assert await receive_exactly(target, 2) == b"on"
    assert not other.ended
    visitor.close()


async def test_who_knows_the_current_key_is_not_disturbed(relay: Relay) -> None:
    router, away = relay.enrol("home"), relay.enrol("away")
    former = relay.rotate()
    away.relay_key = former
    await router.attach()
    await away.attach()
    await away.cut()
    relay.agents.renew_links()
    await quiet()
    assert not router.ended
    assert relay.agent(away).endpoint is not None


async def test_a_successor_is_taken_and_everything_goes_on(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    port = free_port()
    router, new = relay.enrol("home", port), StaticKey.generate()
    await router.attach()
    await router.serve(port)
    visitor, target = await router.visited(port)
    old = router.again()
    welcome = await router.resume(successor=new.public)
    assert (welcome.resumed, welcome.agent_key) == (True, new.public)
    assert [each["agent"] for each in told(caplog, "agent-key-rotated")] == ["home"]
    # Neither the change nor the look for changes has expelled it.
    relay.agents.refresh()
    await send_all(visitor, b"on")
    assert await receive_exactly(target, 2) == b"on"
    await denied(old, DenialCode.REVOKED)
    # The next link under the new key; the port is granted to that.
    router.key = new
    assert (await router.resume()).resumed
    await send_all(visitor, b"!")
    assert await receive_exactly(target, 1) == b"!"
    other = free_port()
    relay.registry.invite("home", bytes(16), now=0, lifetime=9, ports=[other], port_range=range(1))
    await router.serve(other)
    visitor.close()
    # Revoking names the agent, so it ends both.
    relay.registry.revoke("home", 1.0)
    relay.agents.refresh()
    for one in (old, router.again()):
        await denied(one, DenialCode.REVOKED)


async def test_a_successor_taken_with_a_first_link(relay: Relay) -> None:
    router, new = relay.enrol("home"), StaticKey.generate()
    assert (await router.attach(successor=new.public)).agent_key == new.public
    router.key = new
    welcome = await router.resume(successor=new.public)  # which is no news
    assert (welcome.resumed, welcome.agent_key) == (True, None)


async def test_whoever_may_not_attach_rotates_nothing(relay: Relay, mock_clock: Clock) -> None:
    router = await relay.attached()
    thief = router.again()
    await denied(thief, DenialCode.DUPLICATE, successor=StaticKey.generate().public)
    await denied(router, DenialCode.SUPERSEDED, epoch=0, successor=StaticKey.generate().public)
    assert (await router.resume(epoch=2)).resumed


async def test_a_key_that_was_replaced_during_its_probe_takes_over_nothing(
    relay: Relay, mock_clock: Clock
) -> None:
    router, new = relay.enrol(), StaticKey.generate()
    await router.attach(silent=True)
    thief = router.again()

    async def attach() -> None:
        with pytest.raises(LinkLost, match="closed"):
            await thief.attach()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        await quiet()
        await router.resume(silent=True, successor=new.public)
        await quiet()
        mock_clock.jump(PROBE_SECONDS)
    router.key = new
    assert relay.agent(router).ownership.instance == router.instance


async def test_a_successor_that_cannot_be_taken_leaves_the_old_key_as_it_was(
    relay: Relay, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, other = relay.enrol("home"), relay.enrol("cabin")
    await router.attach()
    welcome = await router.resume(successor=other.key.public)
    assert (welcome.resumed, welcome.agent_key) == (True, None)

    def failing(*_: object) -> None:
        raise StateError("the disk fails")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "succeed", failing)
        welcome = await router.resume(successor=StaticKey.generate().public)
    assert (welcome.resumed, welcome.agent_key) == (True, None)
    assert [each["reason"] for each in told(caplog, "agent-key-kept")] == [
        "the new key is, or was, that of an agent here",
        "the disk fails",
    ]
    assert (await other.attach()).name == "cabin"
