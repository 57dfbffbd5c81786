from __future__ import annotations

import socket
import struct
import sys

import pytest
import trio
import trio.testing

from protocol.transport.sockets import (
    LINK_USER_TIMEOUT_MS,
    close_finished,
    plain,
    prepare_link,
    prepare_spliced,
    receive_exactly,
    send_all,
)
from tests.support.cancellation import cancelled_at
from tests.support.sockets import receive_to_end, tcp_pair, was_reset
from tests.support.waiting import LIMIT

ARMED = struct.pack("ii", 1, 0)


def linger(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(ARMED))


def test_a_link_tells_keystrokes_at_once_and_keeps_itself_alive() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.setblocking(True)
        prepare_link(ours)
        assert ours.gettimeout() == 0.0
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        timeout = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert timeout == LINK_USER_TIMEOUT_MS
        # The last words of a link are sent, not dropped.
        assert linger(ours) != ARMED


def test_a_link_does_without_what_the_system_does_not_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    ours, theirs = tcp_pair()
    with ours, theirs:
        prepare_link(ours)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_spliced_socket_is_armed_from_the_start() -> None:
    with socket.socket() as sock:
        prepare_spliced(sock)  # before it is connected
        assert linger(sock) == ARMED
        assert sock.gettimeout() == 0.0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_only_a_finished_socket_closes_with_an_end_of_file() -> None:
    ours, theirs = tcp_pair()
    prepare_spliced(ours)
    close_finished(ours)
    assert await receive_to_end(theirs) == b""
    assert ours.fileno() == -1
    theirs.close()

    ours, theirs = tcp_pair()
    prepare_spliced(ours)
    ours.close()
    assert await was_reset(theirs)
    theirs.close()


async def test_a_killed_process_resets_what_it_had_spliced() -> None:
    """Its kernel would send FIN otherwise, and what is cut short would look complete."""
    ours, theirs = tcp_pair()
    command = [sys.executable, "-c", _SPLICER, str(ours.fileno())]
    child = await trio.lowlevel.open_process(command, pass_fds=[ours.fileno()])
    ours.close()
    with theirs, trio.fail_after(LIMIT):
        assert await receive_exactly(theirs, 5) == b"armed"
        child.kill()
        assert await was_reset(theirs)
        await child.wait()


_SPLICER = """
import signal, socket, sys
from protocol.transport.sockets import prepare_spliced
sock = socket.socket(fileno=int(sys.argv[1]))
prepare_spliced(sock)
sock.send(b"armed")
signal.pause()
"""


async def test_a_socket_changes_hands_without_being_closed() -> None:
    ours, theirs = tcp_pair()
    with theirs:
        taken = plain(trio.socket.from_stdlib_socket(ours))
        with taken:
            assert taken.gettimeout() == 0.0
            assert (taken.family, taken.type) == (socket.AF_INET, socket.SOCK_STREAM)
            taken.send(b"x")
            assert await receive_exactly(theirs, 1) == b"x"


async def test_exactly_means_neither_more_nor_less() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs, trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:

            async def send_in_pieces() -> None:
                for piece in (b"a", b"bc", b"def"):
                    await trio.testing.wait_all_tasks_blocked()
                    await send_all(theirs, piece)

            nursery.start_soon(send_in_pieces)
            assert await receive_exactly(ours, 4) == b"abcd"
        assert await receive_exactly(ours, 0) == b""
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            await receive_exactly(ours, 3)


async def test_all_is_sent_through_a_socket_that_is_full() -> None:
    blob = bytes(range(256)) * 20_000
    ours, theirs = tcp_pair()
    with ours, theirs, trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, ours, blob)
            assert await receive_exactly(theirs, len(blob)) == blob
        theirs.close()
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            await send_all(ours, blob)


async def test_cancelled_at_any_step_both_leave_the_socket_usable() -> None:
    step, cancelled = 0, True
    with trio.fail_after(LIMIT):
        while cancelled:
            step += 1
            ours, theirs = tcp_pair()
            with ours, theirs:
                with cancelled_at(step) as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(send_all, ours, bytes(8_000_000))
                        nursery.start_soon(receive_exactly, theirs, 8_000_000)
                cancelled = scope.cancelled_caught
                await send_all(theirs, b"still")
                assert await receive_exactly(ours, 5) == b"still"
    assert step > 2
