from __future__ import annotations

import fcntl
import hashlib
import socket
import struct
import termios

import pytest
import trio

from protocol.errors import ResetCode
from protocol.transport.sockets import prepare_spliced, receive_exactly, send_all
from tests.unit.transport.ends import Ends, tcp_pair, two_ends, until

LIMIT = 20.0  # generous: a test that needs it has failed


async def receive_to_end(sock: socket.socket) -> bytes:
    """All up to the end of file; OSError on a reset."""
    data = bytearray()
    while True:
        await trio.lowlevel.wait_readable(sock)
        piece = sock.recv(65536)
        if not piece:
            return bytes(data)
        data += piece


async def is_reset(sock: socket.socket) -> bool:
    try:
        await receive_to_end(sock)
    except ConnectionResetError:
        return True
    return False


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def unacked(sock: socket.socket) -> int:
    """Bytes, or a FIN, that the other side's kernel does not have yet (tcp(7), SIOCOUTQ)."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


async def until_over(ends: Ends) -> None:
    """Until both sides have forgotten every splice and every stream."""
    await until(
        lambda: (
            not ends.relay.splices
            and not ends.agent.splices
            and not ends.relay.session.open_streams
            and not ends.agent.session.open_streams
        )
    )


async def test_bytes_go_both_ways_and_half_closes_are_carried() -> None:
    with trio.fail_after(LIMIT):
        async with two_ends() as ends:
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
            visitor.close()
            target.close()


async def test_more_than_every_window_arrives_whole() -> None:
    blob = hashlib.shake_256(b"blob").digest(5_000_000)
    with trio.fail_after(LIMIT):
        async with two_ends() as ends:
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
            visitor.close()
            target.close()


@pytest.mark.parametrize("who", ["visitor", "target"])
async def test_a_reset_is_carried_as_a_reset(who: str) -> None:
    with trio.fail_after(LIMIT):
        async with two_ends() as ends:
            visitor, target = await ends.visit()
            await send_all(visitor, b"x")
            await receive_exactly(target, 1)
            first, second = (visitor, target) if who == "visitor" else (target, visitor)
            reset(first)
            assert await is_reset(second)
            await until_over(ends)
            second.close()


async def test_what_was_finished_before_a_reset_is_delivered_to_a_slow_reader() -> None:
    """sshd has sent all and is gone; the laptop reads late and still sends."""
    # More than a stream's first window and less than a socket holds: part of it waits at the agent.
    blob = hashlib.shake_256(b"big").digest(200_000)
    with trio.fail_after(LIMIT):
        async with two_ends() as ends:
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
    with trio.fail_after(LIMIT):
        async with two_ends() as ends:
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
    with trio.fail_after(LIMIT):
        async with two_ends() as ends:
            visitor, target = await ends.visit()
            await send_all(visitor, b"x")
            await receive_exactly(target, 1)
            ends.relay.lose()
            ends.agent.lose()
            assert await is_reset(visitor)
            assert await is_reset(target)
            assert ends.relay.session.statistics().replay_held == 0
            visitor.close()
            target.close()


async def test_a_lost_session_still_delivers_what_was_finished() -> None:
    with trio.fail_after(LIMIT):
        async with two_ends() as ends:
            visitor, target = await ends.visit()
            await send_all(target, b"last words")
            target.shutdown(socket.SHUT_WR)
            splice = next(iter(ends.relay.splices.values()))
            await until(lambda: splice.inbound_finished)
            ends.relay.lose()
            assert await receive_to_end(visitor) == b"last words"
            visitor.close()
            target.close()


async def test_a_refused_stream_resets_the_visitor() -> None:
    with trio.fail_after(LIMIT):
        async with two_ends() as ends:
            visitor, at_relay = await _visitor_only(ends)
            splice = ends.agent.join(ends.opened[-1].stream)
            ends.agent.refuse(splice, ResetCode.TARGET_UNREACHABLE)
            assert await is_reset(visitor)
            visitor.close()
            assert not ends.agent.splices
            assert at_relay.fileno() == -1


async def test_data_before_the_target_is_connected_waits() -> None:
    with trio.fail_after(LIMIT):
        async with two_ends() as ends:
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
