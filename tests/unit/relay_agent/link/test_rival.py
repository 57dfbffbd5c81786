"""Make before break: another link beside one that is in doubt."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from protocol.errors import DenialCode
from protocol.transport.sockets import prepare_link, receive_exactly, send_all
from protocol.wire.hello import PREFACE_SIZE, Denial, decode_preface
from protocol.wire.noise import Handshake
from relay_agent.link import attach_loop as module
from relay_agent.link.attach_loop import RETRY
from tests.support.agent import SLACK, House, Logged, a_house
from tests.support.trio_waiting import until


async def attach_in_doubt(house: House, *rivals: Any) -> None:
    """Attach to a relay that falls silent at once; `rivals` greet the links that follow."""
    house.relay.greetings += [house.relay.freeze, *rivals]
    house.relay._nursery.start_soon(house.loop.run)
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
        relay._nursery.start_soon(house.loop.run)
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
        await trio.sleep(module.RECENT)
        house.loop.on_network_change()
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
        relay._nursery.start_soon(house.loop.run)
        await trio.sleep(3.9)
        assert logged("link-denied")
        assert house.loop._session.endpoint is not None
        assert not logged("link-down")


async def test_a_question_that_is_not_yet_a_doubt_commits_no_rival(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_house() as house:
        await house.attached()
        assert house.loop._session.endpoint is not None
        endpoint = house.loop._session.endpoint
        endpoint.session.probe(trio.current_time())
        assert not endpoint.in_doubt
        with pytest.raises(module._NotNeeded):
            house.loop._commit(endpoint)


async def test_a_changed_network_cuts_the_pause_between_rivals_short(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async def close(sock: socket.socket) -> None:
        """Before anything."""

    async with a_house(begin=False) as house:
        await attach_in_doubt(house, close)
        assert house.relay.callers == 2
        house.loop.on_network_change()
        changed_at = trio.current_time()
        await house.attached()
        assert house.relay.times[2] - changed_at < 0.05


async def test_a_changed_network_leaves_a_link_that_answers_alone(
    jumping_clock: trio.testing.MockClock, logged: Logged
) -> None:
    async with a_house() as house:
        await house.attached()
        for _ in range(3):
            house.loop.on_network_change()
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
        house.relay._nursery.start_soon(house.loop.run)
        await until(lambda: bool(logged("link-up")))
        house.loop.on_network_change()
        await trio.sleep(1.2)
        await house.attached()
        assert [each["resumed"] for each in logged("link-up")] == [False, True]
