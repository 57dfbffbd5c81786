from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from protocol.errors import DenialCode, LinkDenied, LinkLost
from protocol.process.address import HostPort
from protocol.process.state import StateError
from protocol.session.liveness import DEAD_AFTER, LATE
from protocol.transport.handshake import Arrival
from protocol.transport.sockets import receive_exactly, send_all
from protocol.wire.frame import CloseCode
from protocol.wire.hello import INQUIRY, Resume
from protocol.wire.noise import StaticKey
from relay_server.agents.manager import DUPLICATE_RETRY, PROBE_SECONDS, Agents
from relay_server.registry.registry import Registry
from tests.support.log_records import told
from tests.support.ports import free_port
from tests.support.relay import Relay, Router, running
from tests.support.sockets import caller_of, refuses, was_reset
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


async def denied(router: Router, code: DenialCode, **options: Any) -> LinkDenied:
    with pytest.raises(LinkDenied) as caught:
        await router.attach(**options)
    assert caught.value.code == code
    return caught.value


def is_attached(router: Router) -> bool:
    """As the relay sees it, to this very process."""
    ownership = router.relay.agent(router).ownership
    return ownership.attached and ownership.instance == router.instance


# Attaching


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
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
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
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
    visitor, target = await router.visited(port)
    with visitor, target:
        assert router.endpoint is not None
        router.endpoint.drop_link("another link takes over")
        assert (await router.resume()).resumed
        await send_all(visitor, b"on")
        assert await receive_exactly(target, 2) == b"on"
    assert is_attached(router)


async def test_the_relay_drops_the_link_that_the_agent_has_not_given_up(relay: Relay) -> None:
    router = relay.enrol()
    await router.attach()
    where = router.where()
    old = router.endpoint
    await router.attach(resume=where, silent=True)
    await until(lambda: router.ended)
    assert router.ended == ["closed by the other end"]
    assert is_attached(router)
    assert old is router.endpoint


async def test_two_resumes_at_once_leave_the_later_epoch(relay: Relay) -> None:
    router = relay.enrol()
    await router.attach()
    await router.cut()
    where = router.where()
    await router.attach(resume=where, epoch=3, silent=True)
    await denied(router, DenialCode.SUPERSEDED, resume=where, epoch=3)
    await denied(router, DenialCode.SUPERSEDED, resume=where, epoch=2)
    assert (await router.attach(resume=where, epoch=4)).resumed
    await quiet()
    assert is_attached(router)


async def test_a_foreign_session_id_is_a_new_session(relay: Relay) -> None:
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
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
    router = relay.enrol()
    await router.attach()
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


# Another process with the same key


async def test_a_restarted_agent_takes_its_port_back_at_once(relay: Relay) -> None:
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
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
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
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
    router = relay.enrol()
    await router.attach(silent=True)
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
    router = relay.enrol()
    await router.attach(silent=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(denied, router.again(), DenialCode.DUPLICATE)
        await quiet()
        mock_clock.jump(PROBE_SECONDS - 0.01)
        await quiet()
        await router.carry()
    assert is_attached(router)


async def test_a_resume_during_the_probe_is_life(relay: Relay, mock_clock: Clock) -> None:
    """The agent dials anew because its path has died: silence on the old link proves nothing."""
    router = relay.enrol()
    await router.attach(silent=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(denied, router.again(), DenialCode.DUPLICATE)
        await quiet()
        mock_clock.jump(1.0)
        await quiet()
        assert (await router.resume()).resumed
    assert is_attached(router)


async def test_a_link_lost_during_the_probe_lets_the_newcomer_in_at_once(relay: Relay) -> None:
    router = relay.enrol()
    await router.attach(silent=True)
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
    router = relay.enrol()
    await router.attach(silent=True)
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
    router = relay.enrol()
    await router.attach(silent=True)
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
    router = relay.enrol()
    await router.attach(silent=True)
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
    router = relay.enrol()
    await router.attach()
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


# Going away


async def test_a_goodbye_for_good_ends_the_session_at_once(relay: Relay, mock_clock: Clock) -> None:
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
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
    router = relay.enrol()
    await router.attach()
    router.say_goodbye(CloseCode.RESTARTING)
    await quiet()
    await router.cut()
    assert (await router.resume()).resumed
    router.say_goodbye(CloseCode.GONE)
    await quiet()


async def test_a_goodbye_counts_for_its_own_link_only(relay: Relay) -> None:
    router = relay.enrol()
    await router.attach()
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
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
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
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
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
        router = relay.enrol()
        await router.attach()
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
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
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
    router = relay.enrol()
    await router.attach()

    async def lost(*_: object) -> None:
        raise LinkLost("sending failed: Broken pipe")

    monkeypatch.setattr(Arrival, "deny", lost)
    with pytest.raises(LinkLost):
        await router.again().attach()
    assert is_attached(router)


# Changes from outside


async def test_revoking_takes_everything_at_once(
    relay: Relay, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    port, spare = free_port(), free_port()
    router = relay.enrol("home", port, spare)
    await router.attach()
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
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
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
    router = relay.enrol()
    await router.attach(silent=True)
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
    router = relay.enrol()
    await router.attach(silent=True)
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
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
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
    router = relay.enrol()
    await router.attach()

    def failing(key: bytes) -> None:
        raise StateError("the disk fails")

    monkeypatch.setattr(relay.registry, "agent_by_key", failing)
    with pytest.raises(StateError):
        relay.agents.refresh()
    assert is_attached(router)


# What others see


async def test_the_overview(relay: Relay, mock_clock: Clock) -> None:
    port = free_port()
    router = relay.enrol("home", port)
    await router.attach()
    await router.serve(port)
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


# Our key is another one


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


# Only asking


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


# An agent's key is another one


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
    router = relay.enrol()
    await router.attach()
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
