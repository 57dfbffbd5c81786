from __future__ import annotations

import errno
import hashlib
import socket

import pytest
import trio
import trio.testing

from protocol.errors import ResetCode
from protocol.transport.sockets import prepare_spliced, receive_exactly, send_all
from protocol.transport.splice import DISCARD_SECONDS
from tests.support.blocking_sockets import reset
from tests.support.cancellation import cancelled_at
from tests.support.ends import Ends, check_pool, two_ends, until_over
from tests.support.sockets import receive_to_end, tcp_pair, unacked, was_reset
from tests.support.trio_waiting import until
from tests.support.waiting import LIMIT


async def test_bytes_go_both_ways_and_half_closes_are_carried() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        await send_all(visitor, b"question")
        visitor.shutdown(socket.SHUT_WR)
        assert await receive_to_end(target) == b"question"
        # The other direction is open still.
        await send_all(target, b"answer")
        assert await receive_exactly(visitor, 6) == b"answer"
        target.shutdown(socket.SHUT_WR)
        assert await receive_to_end(visitor) == b""
        await until_over(ends)


async def test_more_than_every_window_arrives_whole() -> None:
    blob = hashlib.shake_256(b"blob").digest(5_000_000)
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        received: dict[str, bytes] = {}

        async def send(sock: socket.socket) -> None:
            await send_all(sock, blob)
            sock.shutdown(socket.SHUT_WR)

        async def receive(name: str, sock: socket.socket) -> None:
            received[name] = await receive_to_end(sock)

        # Both sides write first: neither may wait for the other to read.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, visitor)
            nursery.start_soon(send, target)
            nursery.start_soon(receive, "visitor", visitor)
            nursery.start_soon(receive, "target", target)
        assert received == {"visitor": blob, "target": blob}
        await until_over(ends)


@pytest.mark.parametrize("who", ["visitor", "target"])
async def test_a_reset_is_carried_as_a_reset(who: str) -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        await send_all(visitor, b"x")
        await receive_exactly(target, 1)
        first, second = (visitor, target) if who == "visitor" else (target, visitor)
        reset(first)
        assert await was_reset(second)
        await until_over(ends)


async def test_what_was_finished_before_a_reset_is_delivered_to_a_slow_reader() -> None:
    """sshd has sent all and is gone; the laptop reads late and still sends."""
    # More than a stream's first window and less than a socket holds: part of it waits at the agent.
    blob = hashlib.shake_256(b"big").digest(200_000)
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        splice = next(iter(ends.agent.splices.values()))
        await send_all(visitor, b"unread")
        await trio.lowlevel.wait_readable(target)
        await send_all(target, blob)
        target.shutdown(socket.SHUT_WR)
        await until(lambda: not unacked(target))
        # Data that nobody read makes the kernel answer with a reset, as for sshd.
        target.close()
        await send_all(visitor, b"window update")
        await until(lambda: splice.deaf)
        await send_all(visitor, b"and another")
        assert await receive_to_end(visitor) == blob
        visitor.close()
        await until_over(ends)


async def test_a_reader_that_stands_still_holds_back_the_writer_and_nobody_else() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        written = 0
        with trio.move_on_after(0.3):
            while True:
                try:
                    written += visitor.send(bytes(65536))
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(visitor)
        held = ends.relay.session.statistics().replay_held
        assert held <= 1024 * 1024
        other, other_target = await ends.visit()
        await send_all(other, b"still alive")
        assert await receive_exactly(other_target, 11) == b"still alive"
        visitor.shutdown(socket.SHUT_WR)
        assert len(await receive_to_end(target)) == written
        for sock in (visitor, target, other, other_target):
            sock.close()


async def test_a_lost_session_resets_both_sockets() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        await send_all(visitor, b"x")
        await receive_exactly(target, 1)
        ends.relay.lose()
        ends.agent.lose()
        assert await was_reset(visitor)
        assert await was_reset(target)
        assert ends.relay.session.statistics().replay_held == 0


async def test_a_lost_session_still_delivers_what_was_finished() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        await send_all(target, b"last words")
        target.shutdown(socket.SHUT_WR)
        splice = next(iter(ends.relay.splices.values()))
        await until(lambda: splice.inbound_finished)
        ends.relay.lose()
        assert await receive_to_end(visitor) == b"last words"


async def test_a_refused_stream_resets_the_visitor() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, at_relay = await _visitor_only(ends)
        splice = ends.agent.join(ends.opened[-1].stream)
        (at_visitor,) = ends.relay.splices.values()
        assert at_visitor.reset_by_peer is None
        ends.agent.refuse(splice, ResetCode.TARGET_UNREACHABLE)
        assert await was_reset(visitor)
        assert at_visitor.reset_by_peer == "target unreachable"
        visitor.close()
        assert not ends.agent.splices
        assert at_relay.fileno() == -1


async def test_a_reason_of_a_later_version_is_told_as_unknown() -> None:
    async with two_ends() as ends:
        splice = ends.relay.join(1)
        splice.on_reset(99, finished=False)
        assert splice.reset_by_peer == "unknown reason"


async def test_data_before_the_target_is_connected_waits() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, _ = await _visitor_only(ends)
        splice = ends.agent.join(ends.opened[-1].stream)
        await send_all(visitor, b"early")
        visitor.shutdown(socket.SHUT_WR)
        await until(lambda: splice.inbound_finished)
        at_agent, target = tcp_pair()
        ends.nursery.start_soon(splice.run, at_agent)
        assert await receive_to_end(target) == b"early"
        target.close()
        assert await receive_to_end(visitor) == b""
        visitor.close()
        await until_over(ends)


async def _visitor_only(ends: Ends) -> tuple[socket.socket, socket.socket]:
    visitor, at_relay = tcp_pair()
    prepare_spliced(at_relay)
    stream = ends.relay.session.open(1, ("203.0.113.9", 4711))
    assert stream is not None
    ends.nursery.start_soon(ends.relay.join(stream).run, at_relay)
    ends.relay.flush()
    await ends.wait_agent(2)
    return visitor, at_relay


async def test_what_a_slow_reader_takes_at_last_is_credited_at_once(
    jumping_clock: trio.testing.MockClock,
) -> None:
    """Nothing else is under way then, so nothing else would send the credit along."""
    async with two_ends() as ends:
        visitor, target = await ends.visit()
        splice = next(iter(ends.relay.splices.values()))
        with trio.move_on_after(10):
            await send_all(visitor, bytes(16_000_000))
        sent = splice.sent
        assert sent < 16_000_000
        began = trio.current_time()
        while splice.sent <= sent + 1_000_000:
            await trio.lowlevel.wait_readable(target)
            target.recv(65536)
        # Without a timer having had to help.
        assert trio.current_time() - began < 0.05


async def finish_then_reset(ends: Ends, visitor: socket.socket, target: socket.socket) -> None:
    """The visitor ends what it says, and is gone when the target answers."""
    await send_all(visitor, b"all")
    visitor.shutdown(socket.SHUT_WR)
    splice = next(iter(ends.agent.splices.values()))
    await until(lambda: splice.inbound_finished)
    reset(visitor)
    await send_all(target, b"answer to nobody")
    await until(lambda: not ends.relay.splices)


async def test_after_a_finished_direction_and_a_reset_the_target_is_heard_out() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        await finish_then_reset(ends, visitor, target)
        await until(lambda: not ends.agent.session.open_streams)
        await send_all(target, bytes(200_000))
        # Neither a reset nor a full socket stopped it, and it read its end of file.
        assert await receive_to_end(target) == b"all"
        target.shutdown(socket.SHUT_WR)
        await until_over(ends)
        assert target.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        target.close()
        check_pool(ends.agent._pool)


@pytest.mark.parametrize("late", [False, True])
async def test_a_target_that_never_ends_is_heard_for_a_minute(
    jumping_clock: trio.testing.MockClock, late: bool
) -> None:
    async with two_ends() as ends:
        visitor, target = await ends.visit()
        await finish_then_reset(ends, visitor, target)
        began = trio.current_time()
        assert await receive_to_end(target) == b"all"
        await trio.sleep(DISCARD_SECONDS - 0.5 - (trio.current_time() - began))
        assert ends.agent.splices
        if late:
            await trio.sleep(1.0)
            assert not ends.agent.splices
            # A reset behind our FIN is what Linux calls by this name.
            assert target.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
        else:
            target.shutdown(socket.SHUT_WR)
            await until(lambda: not ends.agent.splices)


async def test_a_target_that_resets_while_it_is_heard_out_is_over() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        await finish_then_reset(ends, visitor, target)
        reset(target)
        await until_over(ends)


async def test_a_lost_session_while_a_target_is_heard_out_changes_nothing() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        await finish_then_reset(ends, visitor, target)
        ends.agent.lose()
        assert await receive_to_end(target) == b"all"
        target.close()
        await until(lambda: not ends.agent.splices)


async def test_a_reset_gives_back_the_memory_of_what_waits() -> None:
    """Its credit is at the peer again: else a visitor could make us hold many windows."""
    async with two_ends(limit=LIMIT) as ends:
        visitor, _ = await _visitor_only(ends)
        splice = ends.agent.join(ends.opened[-1].stream)
        await send_all(visitor, bytes(30_000))
        await until(lambda: len(splice._backlog) == 30_000)
        with splice.dialling:
            reset(visitor)
            await trio.sleep_forever()
        assert splice._backlog == b""
        assert ends.agent.session.open_streams == 0
        # A socket that came all the same is reset unused.
        at_agent, target = tcp_pair()
        prepare_spliced(at_agent)
        await splice.run(at_agent)
        assert await was_reset(target)
        target.close()


async def test_a_reset_behind_a_finished_direction_still_wants_its_socket() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, at_relay = await _visitor_only(ends)
        stream = ends.opened[-1].stream
        splice = ends.agent.join(stream)
        await send_all(visitor, b"last words")
        visitor.shutdown(socket.SHUT_WR)
        await until(lambda: splice.inbound_finished)
        ends.relay.session.reset(stream, ResetCode.ABORTED)
        ends.relay.flush()
        await until(lambda: splice._reset is not None)
        assert not splice.dialling.cancel_called
        at_agent, target = tcp_pair()
        prepare_spliced(at_agent)
        ends.nursery.start_soon(splice.run, at_agent)
        assert await receive_to_end(target) == b"last words"
        target.close()
        await until(lambda: not ends.agent.splices)
        assert at_relay.fileno() != -1
        visitor.close()


async def test_while_spliced_a_socket_is_armed_to_reset() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        await send_all(visitor, b"x")
        await receive_exactly(target, 1)
        splice = next(iter(ends.agent.splices.values()))
        sock = splice._sock
        assert sock is not None
        armed = (1).to_bytes(4, "little") + bytes(4)
        for step in (
            lambda: None,
            lambda: visitor.shutdown(socket.SHUT_WR),
        ):
            step()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == armed
        target.shutdown(socket.SHUT_WR)
        await until_over(ends)
        assert sock.fileno() == -1


@pytest.mark.parametrize("attempt", range(8))
async def test_a_fin_that_meets_a_socket_already_reset_hides_no_reset(attempt: int) -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        await send_all(visitor, b"x")
        await trio.lowlevel.wait_readable(target)
        stream = next(iter(ends.relay.splices))
        ends.relay.session.finish(stream)
        ends.relay.flush()
        reset(target)
        await until(lambda: not ends.agent.splices)
        assert await was_reset(visitor)


async def test_cancelled_at_any_step_a_splice_closes_its_socket_and_tells_the_peer() -> None:
    """Neither side ever sees an end of file before all bytes of its peer."""
    step, cancelled = 0, True
    with trio.fail_after(2 * LIMIT):
        while cancelled:
            step += 1
            async with two_ends() as ends:
                visitor, _ = await _visitor_only(ends)
                at_agent, target = tcp_pair()
                prepare_spliced(at_agent)
                splice = ends.agent.join(ends.opened[-1].stream)
                results: dict[str, bytes | None] = {}

                async def talk(name: str, sock: socket.socket) -> None:
                    try:
                        await send_all(sock, b"from the " + name.encode())
                        sock.shutdown(socket.SHUT_WR)
                        results[name] = await receive_to_end(sock)  # noqa: B023 - in this round
                    except OSError:
                        results[name] = None  # noqa: B023 - in this round

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(talk, "visitor", visitor)
                    nursery.start_soon(talk, "target", target)
                    with cancelled_at(step) as scope:
                        await splice.run(at_agent)
                    cancelled = scope.cancelled_caught
                assert results["visitor"] in (b"from the target", None)
                assert results["target"] in (b"from the visitor", None)
                assert at_agent.fileno() == -1
                await until_over(ends)
                check_pool(ends.agent._pool)
                check_pool(ends.relay._pool)
                session = ends.relay.session
                await until(lambda: not session.statistics().replay_held)  # noqa: B023 - in this round
                visitor.close()
                target.close()
            assert cancelled or results == {
                "visitor": b"from the target",
                "target": b"from the visitor",
            }
    assert step > 8


class Narrow:
    """A socket that takes no more than `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = b""

    def send(self, data: memoryview) -> int:
        return self.sendmsg([data])

    def sendmsg(self, data: list[memoryview]) -> int:
        if not self.room:
            raise BlockingIOError
        taken = b"".join(data)[: self.room]
        self.taken += taken
        self.room -= len(taken)
        return len(taken)


@pytest.mark.parametrize("room", range(8))
async def test_of_a_run_what_the_socket_does_not_take_is_kept_in_order(room: int) -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        splice = next(iter(ends.agent.splices.values()))
        await send_all(visitor, b"abcdefg")
        await receive_exactly(target, 7)
        real, narrow = splice._sock, Narrow(room)
        splice._sock = narrow  # type: ignore[assignment]  # stands in for a full socket
        state = ends.agent.session._streams[splice.stream]
        state._settled -= 7  # the same bytes once more
        splice.on_data([memoryview(b"ab"), memoryview(b"cde"), memoryview(b"fg")])
        assert narrow.taken + splice._backlog == b"abcdefg"
        assert len(narrow.taken) == room
        splice._backlog.clear()
        splice._sock = real


async def test_a_thousand_keystrokes_of_an_outage_arrive_in_one_go() -> None:
    """More pieces than one system call takes."""
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        ends.cut()
        typed = b""
        for number in range(2000):
            line = b"%015d\n" % number
            await send_all(visitor, line)
            typed += line
            await until(lambda: not ends.relay.session.attached)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        assert ends.relay.session.statistics().replay_held > 1200 * 256
        await ends.heal()
        assert await receive_exactly(target, len(typed)) == typed
