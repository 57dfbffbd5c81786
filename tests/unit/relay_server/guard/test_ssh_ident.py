from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from relay_server.guard.ssh_ident import Identification, look, wait_identification
from tests.support.sockets import tcp_pair

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A visitor, and its socket at the relay."""
    visitor, sock = tcp_pair()
    with visitor, sock:
        yield visitor, sock


async def waited(sock: socket.socket) -> bool:
    """Whether there is enough to tell."""
    with trio.move_on_after(1) as scope:
        await wait_identification(sock)
    return not scope.cancelled_caught


SSH, FOREIGN = Identification.SSH, Identification.FOREIGN
SILENT, GONE = Identification.SILENT, Identification.GONE


@pytest.mark.parametrize(
    ("said", "ended", "wakes", "identification"),
    [
        # Four bytes tell.
        (b"SSH-", False, True, SSH),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", False, True, SSH),
        (b"SSH-1.5-old\n", False, True, SSH),
        (b"SSH 2", False, True, FOREIGN),
        (b"ssh-2.0-x", False, True, FOREIGN),
        (b" SSH-2.0-x", False, True, FOREIGN),
        (b"\r\n\r\n", False, True, FOREIGN),
        (b"GET / HTTP/1.1\r\n", False, True, FOREIGN),
        (bytes(4), False, True, FOREIGN),
        # Less does not wake the waiter.
        (b"", False, False, SILENT),
        (b"S", False, False, SILENT),
        (b"SSH", False, False, SILENT),
        (b"G", False, False, FOREIGN),
        (b"SSG", False, False, FOREIGN),
        # An end does.
        (b"", True, True, GONE),
        (b"S", True, True, FOREIGN),
        (b"SSH", True, True, FOREIGN),
        (b"SSH-", True, True, SSH),
    ],
)
async def test_what_has_come_tells_and_stays_in_the_socket(
    pair: Pair,
    autojump_clock: trio.testing.MockClock,
    said: bytes,
    ended: bool,
    wakes: bool,
    identification: Identification,
) -> None:
    visitor, sock = pair
    visitor.send(said)
    if ended:
        visitor.shutdown(socket.SHUT_WR)
    assert await waited(sock) is wakes
    assert look(sock, waited=wakes) is identification
    if said:
        assert sock.recv(100) == said


async def test_a_reset_wakes(pair: Pair, autojump_clock: trio.testing.MockClock) -> None:
    visitor, sock = pair
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    visitor.close()
    assert await waited(sock)
    assert look(sock, waited=True) is GONE


async def test_afterwards_a_single_byte_wakes_again(
    pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    visitor, sock = pair
    assert not await waited(sock)
    visitor.send(b"x")
    with trio.fail_after(1):
        await trio.lowlevel.wait_readable(sock.fileno())
