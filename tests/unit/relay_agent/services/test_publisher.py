from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from protocol.errors import RefusalCode, ResetCode
from protocol.transport.sockets import receive_exactly, send_all
from protocol.wire import frame as wire
from protocol.wire.frame import CloseCode
from protocol.wire.noise import StaticKey
from relay_agent.services import publisher as module
from relay_agent.services.proxy_protocol import Version, header
from relay_agent.services.publisher import REPUBLISH
from relay_agent.services.service import Service
from relay_agent.services.target import loopback_source
from tests.support.agent import serving
from tests.support.blocking_sockets import reset
from tests.support.log_records import events
from tests.support.scripted_relay import VISITOR, ScriptedRelay, Target
from tests.support.sockets import receive_to_end, was_reset
from tests.support.trio_waiting import until

KEY = StaticKey.generate()


class Held:
    """A `dial_target` that waits until it is let go."""

    def __init__(self) -> None:
        self.waiting = 0
        self.go = trio.Event()

    async def __call__(self, target: object, visitor: str) -> socket.socket:
        self.waiting += 1
        try:
            await self.go.wait()
        finally:
            self.waiting -= 1
        raise ConnectionRefusedError(111, "Connection refused")


def publications(relay: ScriptedRelay) -> Sequence[tuple[int, str, int]]:
    return [(each.publication, each.service, each.port) for each in relay.published]


# Publications


async def test_every_service_is_published_on_its_port(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    target = Target()
    services = [Service("ssh", target.address, 11111), Service("web", target.address, 11112)]
    async with serving(*services) as (_, relay):
        assert publications(relay) == [(1, "ssh", 11111), (2, "web", 11112)]
        relay.now.session.published(1, 11111)  # once more is no news
        relay.now.flush()
        await until(lambda: relay.now.session.statistics().control_held == 0)
        assert [each["service"] for each in events(caplog, "service-up")] == ["ssh", "web"]
    target.close()


async def test_a_busy_port_is_the_relays_to_try_again(
    jumping_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    target = Target()
    service = Service("ssh", target.address, 11111)
    async with serving(service, answer=RefusalCode.PORT_BUSY) as (_, relay):
        await trio.sleep(10 * REPUBLISH)
        assert len(relay.published) == 1
        assert len(events(caplog, "service-refused")) == 1
        relay.now.session.published(1, 11111)
        relay.now.flush()
        await until(lambda: events(caplog, "service-up"))
    target.close()


@pytest.mark.parametrize(
    "code", [RefusalCode.NOT_GRANTED, RefusalCode.LIMIT, RefusalCode.PORT_FAILED, 200]
)
async def test_another_refusal_is_asked_about_again_under_a_fresh_id(
    jumping_clock: trio.testing.MockClock, code: int
) -> None:
    target = Target()
    service = Service("ssh", target.address, 11111)
    async with serving(service, answer=code) as (_, relay):
        await trio.sleep(REPUBLISH - 0.5)
        assert len(relay.published) == 1
        await trio.sleep(1.0)
        assert relay.withdrawn == [1]
        assert publications(relay)[1] == (2, "ssh", 11111)
        relay.answer = relay.confirm
        await trio.sleep(3 * REPUBLISH)
        assert len(relay.published) == 3
    target.close()


async def test_a_relay_that_repeats_itself_is_heard_once(
    jumping_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It held a task a time, and the second of them ended the agent."""
    target = Target()
    service = Service("ssh", target.address, 11111)
    async with serving(service, answer=RefusalCode.NOT_GRANTED) as (one, relay):
        for _ in range(50):
            relay.now.session.refused(1, RefusalCode.NOT_GRANTED, "refused with 2")
        relay.now.flush()
        await until(lambda: relay.now.session.statistics().control_held == 0)
        assert len(one._again) == 1
        assert len(events(caplog, "service-refused")) == 1
        await trio.sleep(REPUBLISH + 1)
        assert len(relay.published) == 2
    target.close()


async def test_an_answer_that_turns_to_yes_stays(jumping_clock: trio.testing.MockClock) -> None:
    target = Target()
    service = Service("ssh", target.address, 11111)
    async with serving(service, answer=RefusalCode.NOT_GRANTED) as (one, relay):
        relay.now.session.published(1, 11111)
        relay.now.flush()
        await until(lambda: not one._again)
        await trio.sleep(2 * REPUBLISH)
        assert len(relay.published) == 1
    target.close()


@pytest.mark.parametrize("early", [1.0, 0.0])
async def test_nothing_is_published_into_a_dead_session(
    jumping_clock: trio.testing.MockClock, early: float
) -> None:
    """Neither later nor when its end falls into the very turn."""
    target = Target()
    service = Service("ssh", target.address, 11111)
    async with serving(service, answer=RefusalCode.NOT_GRANTED) as (one, relay):
        began = trio.current_time()
        held = one.endpoint.session.statistics().control_held
        await trio.sleep_until(began + REPUBLISH - early)
        one.lose()
        await trio.sleep(2 * REPUBLISH)
        assert one.endpoint.session.statistics().control_held <= held
        assert len(relay.published) <= (1 if early else 2)
    target.close()


async def test_other_services_from_now_on(caplog: pytest.LogCaptureFixture) -> None:
    """One stays, one goes, one moves to the port of the one that goes."""
    caplog.set_level("INFO")
    target, other = Target(), Target()
    services = [
        Service("ssh", target.address, 11111),
        Service("web", target.address, 11112),
        Service("cam", target.address, 11113),
    ]
    async with serving(*services) as (one, relay):
        staying = relay.visit(1)
        accepted = [(await target.accept())[0]]
        leaving = relay.visit(2)
        accepted.append((await target.accept())[0])
        one.change(
            [Service("ssh", target.address, 11111), Service("cam", other.address, 11112)],
        )
        await until(lambda: len(relay.published) == 4)
        assert relay.withdrawn == [2, 3]
        assert publications(relay)[3] == (4, "cam", 11112)
        # Streams go on, also those of what is published no more.
        for visitor, sock in zip((staying, leaving), accepted, strict=True):
            await send_all(visitor, b"still here")
            assert await receive_exactly(sock, 10) == b"still here"
            sock.close()
            visitor.close()
        visitor = relay.visit(4)
        sock, _ = await other.accept()
        sock.close()
        visitor.close()
        assert [each["service"] for each in events(caplog, "service-withdrawn")] == ["web", "cam"]
        assert [each["port"] for each in one.services()] == [11111, 11112]
    for each in (target, other):
        each.close()


async def test_another_target_is_for_who_comes_next_and_is_no_news_to_the_relay() -> None:
    target, other = Target(), Target()
    async with serving(Service("ssh", target.address, 11111)) as (one, relay):
        before = relay.visit(1)
        accepted, _ = await target.accept()
        one.change([Service("ssh", other.address, 11111)])
        after = relay.visit(1)
        also_accepted, _ = await other.accept()
        await send_all(before, b"still here")
        assert await receive_exactly(accepted, 10) == b"still here"
        assert len(relay.published) == 1
        assert not relay.withdrawn
        for sock in (before, after, accepted, also_accepted):
            sock.close()
    for each in (target, other):
        each.close()


async def test_what_is_published_no_more_is_not_asked_about_again(
    jumping_clock: trio.testing.MockClock,
) -> None:
    target = Target()
    service = Service("ssh", target.address, 11111)
    async with serving(service, answer=RefusalCode.NOT_GRANTED) as (one, relay):
        one.change([])
        await trio.sleep(2 * REPUBLISH)
        assert len(relay.published) == 1
        assert relay.withdrawn == [1]
        assert not one._again
        assert not one._answers
    target.close()


async def test_a_relay_that_leaves_says_so_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with serving() as (_, relay):
        relay.now.session.close_link(CloseCode.RESTARTING)
        relay.now.flush()
        await until(lambda: events(caplog, "relay-closing"))


# Streams


async def test_a_visitor_reaches_the_target_of_the_service_it_came_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    targets = [Target(), Target()]
    services = [
        Service(name, target.address, port)
        for name, target, port in zip(("ssh", "web"), targets, (11111, 11112), strict=True)
    ]
    async with serving(*services) as (one, relay):
        for publication, target in enumerate(targets, start=1):
            visitor = relay.visit(publication)
            sock, _ = await target.accept()
            await send_all(visitor, b"question")
            visitor.shutdown(socket.SHUT_WR)
            assert await receive_to_end(sock) == b"question"
            await send_all(sock, b"answer!")
            sock.close()
            assert await receive_to_end(visitor) == b"answer!"
            visitor.close()
        await until(lambda: not one.endpoint.splices)
    assert [each["event"] for each in events(caplog)][-4:] == ["visitor-in", "visitor-out"] * 2
    last = events(caplog)[-1]
    assert (last["received"], last["sent"]) == (len("question"), len("answer!"))
    assert (last["service"], last["source"]) == ("web", VISITOR[0])
    for target in targets:
        target.close()


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_target_that_wants_to_is_told_of_its_visitor_first(version: Version) -> None:
    target = Target()
    async with serving(Service("web", target.address, 11112, version)) as (_, relay):
        visitor = relay.visit(1)
        await send_all(visitor, b"question")
        visitor.shutdown(socket.SHUT_WR)
        sock, host = await target.accept()
        assert await receive_to_end(sock) == header(version, VISITOR, 11112) + b"question"
        # On the same machine, its address is still one that stands for the visitor's.
        assert host == loopback_source(VISITOR[0])
        for one in (sock, visitor):
            one.close()
    target.close()


async def test_a_target_that_ends_before_it_was_told_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def reset_at_once(sock: socket.socket, data: bytes) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(module, "send_all", reset_at_once)
    target = Target()
    async with serving(Service("web", target.address, 11112, "v2")) as (one, relay):
        visitor = relay.visit(1)
        assert await was_reset(visitor)
        assert not one.endpoint.splices
        visitor.close()
    (line,) = events(caplog, "target-unreachable")
    assert line["reason"] == "Connection reset by peer"
    target.close()


async def test_a_target_that_refuses_resets_its_visitor_with_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    target = Target()
    target.close()
    async with serving(Service("ssh", target.address, 11111)) as (one, relay):
        visitor = relay.visit()
        stream = next(iter(relay.now.splices))
        codes = []
        splice = relay.now.splices[stream]
        on_reset = splice.on_reset
        splice.on_reset = lambda code, *, finished: (  # type: ignore[method-assign]  # a spy
            codes.append(code),
            on_reset(code, finished=finished),
        )
        assert await was_reset(visitor)
        assert codes == [ResetCode.TARGET_UNREACHABLE]
        (line,) = events(caplog, "target-unreachable")
        assert line["target"] == str(target.address)
        assert line["reason"] == "Connection refused"
        assert not one.endpoint.splices
        assert not one.endpoint.session.open_streams
        visitor.close()


async def test_a_visitor_that_leaves_calls_off_the_dial(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    held = Held()
    monkeypatch.setattr(module, "dial_target", held)
    target = Target()
    async with serving(Service("ssh", target.address, 11111)) as (one, relay):
        visitor = relay.visit()
        await send_all(visitor, bytes(30_000))
        await until(lambda: held.waiting)
        reset(visitor)
        await until(lambda: not one.endpoint.splices)
        assert not held.waiting
        assert len(events(caplog, "visitor-left")) == 1
    target.close()


async def test_visitors_that_come_and_go_hold_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their slots are free at once, so only this keeps them from using up our descriptors."""
    held = Held()
    monkeypatch.setattr(module, "dial_target", held)
    target = Target()
    async with serving(Service("ssh", target.address, 11111)) as (one, relay):
        session = relay.now.session
        for _ in range(500):
            session.reset(relay.open(), ResetCode.ABORTED)
        relay.now.flush()
        received = one.endpoint.session.received
        await until(lambda: one.endpoint.session.received == received + 1000)
        await until(lambda: not one.endpoint.splices)
        assert not held.waiting
    target.close()


@pytest.mark.parametrize("more", [0, 1])
async def test_sockets_that_linger_are_bounded(monkeypatch: pytest.MonkeyPatch, more: int) -> None:
    """A visitor who has finished before it leaves is served on, whoever else comes."""
    held = Held()
    monkeypatch.setattr(module, "dial_target", held)
    target = Target()
    service = Service("ssh", target.address, 11111)
    async with serving(service, max_streams=5) as (one, relay):
        session = relay.now.session
        for _ in range(10 + more):
            stream = relay.open()
            session.finish(stream)
            relay.now.flush()
            session.reset(stream, ResetCode.ABORTED)
            relay.now.flush()
        await until(lambda: one.endpoint.session.received >= 1 + 3 * 10 + 2 * more)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(one.endpoint.splices) == 10
        assert held.waiting == 10
        held.go.set()
        await until(lambda: not one.endpoint.splices)
    target.close()


async def test_a_lost_session_calls_off_what_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    monkeypatch.setattr(module, "dial_target", held)
    target = Target()
    async with serving(Service("ssh", target.address, 11111)) as (one, relay):
        visitor = relay.visit()
        await until(lambda: held.waiting)
        one.lose()
        await until(lambda: not one.endpoint.splices)
        assert not held.waiting
        visitor.close()
    target.close()


async def test_data_right_behind_its_open_is_not_lost() -> None:
    target = Target()
    async with serving(Service("ssh", target.address, 11111)) as (_, relay):
        stream = relay.open()
        splice = relay.now.join(stream)
        buffer = bytearray(wire.HEADER_SIZE) + b"early"
        relay.now.session.send(stream, [buffer], 5)
        relay.now.flush()
        sock, _ = await target.accept()
        assert await receive_exactly(sock, 5) == b"early"
        reset(sock)
        await until(lambda: splice._reset is not None)
        relay.now.forget(splice)
    target.close()
