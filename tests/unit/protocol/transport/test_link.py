from __future__ import annotations

import hashlib
import socket
from itertools import pairwise
from random import Random

import pytest
import trio
import trio.testing

from protocol.errors import LinkLost, RemoteProtocolError, SessionLost
from protocol.transport import link as link_module
from protocol.transport.link import Link
from protocol.transport.sockets import receive_exactly, reset_on_close, send_all
from protocol.transport.tcpinfo import TcpInfo
from protocol.wire import frame as wire
from protocol.wire.frame import HEADER_SIZE, MAX_PAYLOAD, FrameType
from protocol.wire.record import RECORD_OVERHEAD
from tests.support.blocking_sockets import reset
from tests.support.cancellation import cancelled_at
from tests.support.ends import check_pool, two_ends, until_over
from tests.support.sockets import receive_to_end
from tests.support.trio_waiting import until
from tests.support.waiting import LIMIT


@pytest.mark.parametrize("seed", range(3))
async def test_streams_outlive_their_links(seed: int) -> None:
    """Cut at times drawn from the seed: every byte arrives once, in order."""
    rng = Random(seed)
    blob = hashlib.shake_256(b"blob%d" % seed).digest(8_000_000)
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        received: dict[str, bytes] = {}

        async def send(sock: socket.socket) -> None:
            await send_all(sock, blob)
            sock.shutdown(socket.SHUT_WR)

        async def receive(name: str, sock: socket.socket) -> None:
            received[name] = await receive_to_end(sock)

        async def cut_and_heal(scope: trio.CancelScope) -> None:
            with scope:
                while True:
                    for _ in range(rng.randrange(1, 40)):
                        await trio.lowlevel.checkpoint()
                    ends.cut()
                    for _ in range(rng.randrange(0, 20)):
                        await trio.lowlevel.checkpoint()
                    await ends.heal()

        cutting = trio.CancelScope()
        async with trio.open_nursery() as chaos:
            chaos.start_soon(cut_and_heal, cutting)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, visitor)
                nursery.start_soon(send, target)
                nursery.start_soon(receive, "visitor", visitor)
                nursery.start_soon(receive, "target", target)
            cutting.cancel()
        assert received == {"visitor": blob, "target": blob}
        if ends.relay.link is None or ends.agent.link is None:
            await ends.heal()
        await until_over(ends)
        assert ends.lost.count("cut") >= 2


async def test_the_other_end_closing_is_a_lost_link_and_no_more() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        assert ends.relay.link is not None
        ends.relay.drop_link("test")
        await until(lambda: len(ends.lost) == 2)
        assert "closed by the other end" in ends.lost[-1]
        assert not ends.agent.session.attached
        await send_all(visitor, b"while away")
        visitor.shutdown(socket.SHUT_WR)
        await ends.heal()
        assert await receive_to_end(target) == b"while away"


@pytest.mark.parametrize(("streams", "patience"), [(0, 20.0 + 3.0), (1, 4.0 + 3.0)])
async def test_a_silent_peer_is_dead_after_one_question(
    jumping_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    streams: int,
    patience: float,
) -> None:
    monkeypatch.setattr(link_module, "tcp_info", lambda sock: None)
    async with two_ends() as ends:
        sockets = [await ends.visit() for _ in range(streams)]
        ends.cut()
        # The relay's process is stopped: its kernel acks, and nobody reads.
        (link, received), (silent, _) = await ends.shake()
        began = trio.current_time()
        with pytest.raises(LinkLost, match="no sign of life"):
            await ends.agent.carry(link, received)
        assert trio.current_time() - began == pytest.approx(patience, abs=0.1)
        assert not ends.agent.session.attached
        link.close()
        silent.close()
        for pair in sockets:
            for sock in pair:
                sock.close()


async def test_a_link_that_is_given_up_is_reset(
    jumping_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIN would wait in the kernel behind what nobody acks."""
    monkeypatch.setattr(link_module, "tcp_info", lambda sock: None)
    async with two_ends() as ends:
        ends.cut()
        (link, received), (silent, _) = await ends.shake()
        with pytest.raises(LinkLost, match="no sign of life"):
            await ends.agent.carry(link, received)
        link.close()
        with pytest.raises(LinkLost, match="reset"):
            await _receive_for_ever(silent)
        silent.close()


async def test_whether_the_other_side_is_still_there() -> None:
    async with two_ends() as ends:
        (link, _), (other, _) = await ends.shake()
        assert not other.over
        await link.send_frame(wire.link_frame(FrameType.PONG, bytes(16)))
        assert not other.over
        assert await other.receive_frame()
        link.close()
        assert other.over
        other.close()


async def test_a_goodbye_that_came_before_the_reset_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though the next thing that happens here is that sending fails."""
    async with two_ends(limit=LIMIT) as ends:
        ends.cut()
        (link, received), (other, _) = await ends.shake()
        ends.nursery.start_soon(ends.carry, ends.agent, link, received)
        await until(lambda: ends.agent.link is link)
        before = len(ends.events)
        await other.send_frame(wire.link_frame(FrameType.CLOSE, b"\x02"))
        reset_on_close(other._sock)
        other.close()
        # In this very turn, before the reader's: of whoever has something to send.
        assert link._send(memoryview(b"x")) == 1
        assert link._send(memoryview(b"x")) == 1
        assert link._mute
        link.flush()
        await until(lambda: len(ends.events) > before)
        await until(lambda: ends.agent.link is None)


async def test_a_process_that_was_stopped_judges_nothing(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with two_ends() as ends:
        before = ends.agent.link
        for _ in range(3):
            await trio.sleep(21)  # questions are on their way at times
            jumping_clock.jump(3600)
            await trio.sleep(5)
        assert ends.agent.link is before
        assert ends.lost == []


async def test_bytes_that_came_in_the_turn_of_the_verdict_are_life(
    jumping_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_ends() as ends:
        ends.cut()
        (link, received), (silent, _) = await ends.shake()
        # The reader's turn does not come.
        monkeypatch.setattr(link, "_read", _nothing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.carry, ends.agent, link, received)
            await trio.sleep(22.9)
            await silent.send_frame(wire.link_frame(FrameType.PONG, bytes(16)))
            await trio.sleep(1)
            assert ends.agent.link is link
            nursery.cancel_scope.cancel()
        silent.close()


async def _receive_for_ever(link: Link) -> None:
    while True:
        await link.receive_frame()


async def _nothing(*_: object) -> None:
    return


async def test_a_question_is_heeded_though_the_socket_is_full(
    jumping_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a clock that jumps, what the kernel acked a moment ago would count as acked just now.
    monkeypatch.setattr(link_module, "tcp_info", lambda sock: None)
    async with two_ends() as ends:
        visitor, target = await ends.visit()
        ends.cut()
        (link, received), (silent, _) = await ends.shake()
        _clog(link)
        ends.nursery.start_soon(ends.carry, ends.agent, link, received)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await send_all(target, bytes(200_000))
        await until(lambda: link._pending is not None)
        began = trio.current_time()
        assert not await ends.agent.shows_life(3.5)
        assert trio.current_time() - began <= 3.1
        await until(lambda: "no sign of life" in ends.lost)
        for sock in (visitor, target, silent):
            sock.close()


@pytest.mark.parametrize(("acks_until", "dead_after"), [(0.0, 3.0), (9.5, 12.0), (1000.0, 30.0)])
async def test_while_acks_advance_a_silent_link_is_not_dead(
    jumping_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    acks_until: float,
    dead_after: float,
) -> None:
    """A saturated path answers late. It has until 3 s after the last ack, and 30 s in all."""
    async with two_ends() as ends:
        ends.cut()
        (link, received), (silent, _) = await ends.shake()
        asked = None

        def info(_: socket.socket) -> TcpInfo:
            late = 0.0 if asked is None else max(0.0, trio.current_time() - asked - acks_until)
            acked = int((trio.current_time() - late) * 1000)
            return TcpInfo(
                bytes_acked=acked,
                ack_age=late,
                segment=1448,
                min_rtt=0.0,
                rate=0,
                app_limited=False,
            )

        monkeypatch.setattr(link_module, "tcp_info", info)
        ends.nursery.start_soon(ends.carry, ends.agent, link, received)
        await until(lambda: ends.agent.link is link)
        asked = trio.current_time()
        ends.agent.probe()
        await trio.sleep(dead_after - 0.6)
        assert "no sign of life" not in ends.lost
        await trio.sleep(1.2)
        assert "no sign of life" in ends.lost
        silent.close()


async def test_a_link_under_suspicion_says_so(
    jumping_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something was sent and nothing is heard: 2 s later another link should be looked for."""
    monkeypatch.setattr(link_module, "tcp_info", lambda sock: None)
    async with two_ends() as ends:
        ends.cut()
        (link, received), (silent, _) = await ends.shake()
        ends.nursery.start_soon(ends.carry, ends.agent, link, received)
        await until(lambda: ends.agent.link is link)
        ends.agent.session.publish("late", 11112)
        ends.agent.flush()
        await trio.sleep(1.9)
        assert ends.suspicions == 0
        await trio.sleep(0.2)
        assert ends.suspicions == 1
        await trio.sleep(3.0)
        assert "no sign of life" in ends.lost
        silent.close()


def _clog(link: Link) -> None:
    """Leave the socket next to no room; the kernel doubles and has a minimum."""
    link._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


async def test_nobody_shows_life_over_no_link() -> None:
    async with two_ends() as ends:
        assert await ends.relay.shows_life(5)
        link = ends.relay.link
        assert link is not None
        ends.cut()
        assert not await ends.relay.shows_life(5)
        assert not await link.shows_life(5)
        ends.relay.probe()  # nobody to ask
        (fresh, _), (other, _) = await ends.shake()
        assert not await fresh.shows_life(5)
        fresh.close()
        other.close()


async def test_who_waits_for_life_hears_of_the_end() -> None:
    async with two_ends() as ends:
        answers: list[bool] = []
        ends.cut()
        (link, received), (silent, _) = await ends.shake()
        ends.nursery.start_soon(ends.carry, ends.agent, link, received)
        await trio.testing.wait_all_tasks_blocked()

        async def ask() -> None:
            answers.append(await ends.agent.shows_life(30))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            ends.agent.drop_link("test")
        assert answers == [False]
        silent.close()


async def test_a_link_dropped_in_the_middle_of_a_record_tears_nothing() -> None:
    """The old socket holds a part of a record for ever; the new link sends that frame afresh."""
    blob = hashlib.shake_256(b"blob").digest(300_000)
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        ends.cut()
        (link, received), (silent, _) = await ends.shake()
        _clog(link)
        ends.nursery.start_soon(ends.carry, ends.agent, link, received)
        await trio.testing.wait_all_tasks_blocked()
        await send_all(target, blob[:200_000])
        await until(lambda: link._pending is not None)
        ends.agent.drop_link("replaced")
        # The writer was waiting and finds itself dropped; what it held goes back once.
        await until(lambda: ends.lost[-1] == "replaced")
        assert link._pending is None
        check_pool(link_module._batches)
        await ends.heal()
        # What the old one still holds is whole records and a part of one, none of them taken.
        with pytest.raises((LinkLost, RemoteProtocolError), match="closed by the other end"):
            await _receive_for_ever(silent)
        await send_all(target, blob[200_000:])
        target.shutdown(socket.SHUT_WR)
        assert await receive_to_end(visitor) == blob
        silent.close()


async def test_after_a_loss_nothing_more_leaves_the_queues() -> None:
    async with two_ends(limit=LIMIT) as ends:
        await ends.visit()
        link = ends.agent.link
        assert link is not None
        # As when the kernel finds out at our write that the other side has reset.
        link._sock.shutdown(socket.SHUT_WR)
        stream = next(iter(ends.agent.splices))
        session = ends.agent.session
        for _ in range(2):
            for _ in range(20):
                session.send(stream, [bytearray(1400)], 1000)
            ends.agent.flush()
        assert session._outbox.replay.end < 40
        await until(lambda: len(ends.lost) == 2)
        assert any("sending failed" in reason for reason in ends.lost)


async def test_a_hostile_record_ends_the_link_and_a_hostile_frame_the_session() -> None:
    async with two_ends(limit=LIMIT) as ends:
        for hostile, error in (
            (b"\x00\x30" + bytes(48), LinkLost),
            (b"\xff\xff" + bytes(65535), LinkLost),
            (None, SessionLost),
        ):
            ends.cut()
            (link, received), (evil, _) = await ends.shake()
            if hostile is None:
                await evil.send_frame(b"\x3f\x00\x00\x00\x00")
            else:
                await send_all(evil._sock, hostile)
            with pytest.raises(error, match="protocol error"):
                await ends.agent.carry(link, received)
            link.close()
            evil.close()


async def test_frames_that_came_with_the_welcome_are_not_lost() -> None:
    async with two_ends(limit=LIMIT) as ends:
        ends.cut()
        (link, received), (other, _) = await ends.shake()
        before = len(ends.events)
        closing = wire.link_frame(FrameType.CLOSE, b"\x02")
        await other.send_frame(wire.link_frame(FrameType.PONG, bytes(16)))
        await other.send_frame(closing)
        assert await link.receive_frame() == wire.link_frame(FrameType.PONG, bytes(16))
        ends.nursery.start_soon(ends.carry, ends.agent, link, received)
        await until(lambda: len(ends.events) > before)
        other.close()


async def test_on_a_slow_path_no_more_is_sealed_than_may_be_unsent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that a keystroke finds little in front of it."""
    slow = TcpInfo(
        bytes_acked=0, ack_age=0.0, segment=1448, min_rtt=0.0, rate=125_000, app_limited=False
    )
    monkeypatch.setattr(link_module, "tcp_info", lambda _: slow)
    left = 0
    monkeypatch.setattr(link_module, "unsent", lambda _: left)
    async with two_ends(limit=LIMIT) as ends:
        link, session = ends.relay.link, ends.relay.session
        stream = session.open(1, ("203.0.113.9", 4711))
        assert link is not None
        assert stream is not None
        link.flush()
        assert session.record_size == 1448 - RECORD_OVERHEAD - HEADER_SIZE
        left = link._pace.unsent
        for _ in range(3):
            session.send(stream, [bytearray(HEADER_SIZE + 65000)], session.record_size)
        link.flush()
        assert len(session._streams[stream].queue) == 1, "the third waits for room"
        left = 0
        await until(lambda: not session._streams[stream].queue)
        assert not link._waiting


async def test_the_kernel_s_round_trip_makes_windows_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A side that only receives never asks a question of its own, and would measure none."""
    far = TcpInfo(bytes_acked=0, ack_age=0.0, segment=1448, min_rtt=0.15, rate=0, app_limited=False)
    monkeypatch.setattr(link_module, "tcp_info", lambda _: far)
    async with two_ends() as ends:
        assert ends.agent.session.liveness.min_rtt == 0.15


async def test_a_fast_path_has_full_records(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = TcpInfo(
        bytes_acked=0, ack_age=0.0, segment=1448, min_rtt=0.0, rate=10**9, app_limited=False
    )
    monkeypatch.setattr(link_module, "tcp_info", lambda _: fast)
    async with two_ends() as ends:
        assert ends.relay.link is not None
        assert ends.relay.session.record_size == MAX_PAYLOAD
        assert not ends.relay.link._pace.bounded


async def test_a_link_that_is_closed_has_no_peer() -> None:
    async with two_ends() as ends:
        link = ends.agent.link
        assert link is not None
        assert link.peername[0] == "127.0.0.1"
        ends.cut()
        await until(lambda: len(ends.lost) == 2)
        assert link.peername == ("", 0)


async def test_a_frame_to_a_peer_that_is_gone_is_a_lost_link(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with two_ends(limit=LIMIT) as ends:
        (link, _), (other, _) = await ends.shake()
        _clog(link)
        frame = wire.link_frame(FrameType.CLOSE, bytes(60_000))
        with trio.move_on_after(0.05):  # the other side does not read: the socket fills
            await _send_for_ever(link, frame)
        other.close()
        with pytest.raises(LinkLost, match="sending failed"):
            await _send_for_ever(link, frame)
        link.close()


async def _send_for_ever(link: Link, frame: bytes) -> None:
    while True:
        await link.send_frame(frame)


async def _receive_for_ever(link: Link) -> None:
    while True:
        await link.receive_frame()


async def test_a_reset_during_the_handshake_is_a_lost_link() -> None:
    async with two_ends(limit=LIMIT) as ends:
        (link, _), (other, _) = await ends.shake()
        reset(other._sock)
        with pytest.raises(LinkLost, match="receiving failed"):
            await link.receive_frame()
        link.close()


async def test_a_torrent_on_the_link_lets_others_run() -> None:
    """The reader never finds its socket empty, and still yields every TURN_BYTES."""
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        turns = 0
        done = trio.CancelScope()

        async def count_turns() -> None:
            nonlocal turns
            with done:
                while True:
                    await trio.lowlevel.checkpoint()
                    turns += 1

        async def send() -> None:
            await send_all(visitor, bytes(4_000_000))
            visitor.shutdown(socket.SHUT_WR)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            nursery.start_soon(send)
            assert len(await receive_to_end(target)) == 4_000_000
            done.cancel()
        assert turns >= 4_000_000 // (4 * link_module.TURN_BYTES)


async def test_a_flood_of_tiny_frames_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come with one receive, and each may make work: here each uses a turn's time up."""
    flood = 100 * link_module.TURN_FRAMES
    monkeypatch.setattr(link_module, "TURN_SECONDS", 0.0)
    async with two_ends(limit=LIMIT) as ends:
        ends.cut()
        (link, received), (other, _) = await ends.shake()
        before = len(ends.events)
        sealed = bytearray()
        for _ in range(flood):
            record = bytearray(6 + RECORD_OVERHEAD)
            other._sealer.seal_into(wire.link_frame(FrameType.CLOSE, b"\x02"), memoryview(record))
            sealed += record
        await send_all(other._sock, sealed)
        seen = []

        def came() -> int:
            return len(ends.events) - before

        async def look() -> None:
            while came() < flood:
                seen.append(came())
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.carry, ends.agent, link, received)
            await look()
            nursery.cancel_scope.cancel()
        # Of two tasks that can run trio takes either first, so at most two turns in a row.
        most = max(after - earlier for earlier, after in pairwise(seen))
        assert most <= 2 * link_module.TURN_FRAMES
        other.close()


async def test_cancelled_at_any_step_a_link_leaves_a_session_that_goes_on() -> None:
    blob = hashlib.shake_256(b"blob").digest(100_000)
    step, cancelled = 0, True
    with trio.fail_after(2 * LIMIT):
        while cancelled:
            step += 1
            async with two_ends() as ends:
                visitor, target = await ends.visit()
                ends.cut()
                await until(lambda: len(ends.lost) == 2)
                (link, received), (other, its_received) = await ends.shake()
                _clog(link)
                ends.nursery.start_soon(ends.carry, ends.relay, other, its_received)
                with cancelled_at(step) as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(ends.carry, ends.agent, link, received)
                        await send_all(target, blob)
                        assert await receive_exactly(visitor, 50_000) == blob[:50_000]
                        nursery.cancel_scope.cancel()
                cancelled = scope.cancelled_caught
                assert ends.agent.link is None
                assert not ends.agent.session.attached
                assert link._pending is None
                check_pool(link_module._batches)
                ends.cut()
                await ends.heal()
                # Part of it may not have been sent, or read, when the axe fell.
                target.shutdown(socket.SHUT_WR)
                rest = await receive_to_end(visitor)
                assert blob.endswith(rest)
                check_pool(ends.agent._pool)
    assert step > 10
