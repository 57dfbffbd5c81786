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


@pytest.mark.parametrize(
    ("said", "opening"),
    [
        (b"SSH-", Identification.SSH),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", Identification.SSH),
        (b"SSH-1.5-old\n", Identification.SSH),
        (b"SSH 2", Identification.FOREIGN),
        (b"ssh-2.0-x", Identification.FOREIGN),
        (b" SSH-2.0-x", Identification.FOREIGN),
        (b"\r\n\r\n", Identification.FOREIGN),
        (b"GET / HTTP/1.1\r\n", Identification.FOREIGN),
        (bytes(4), Identification.FOREIGN),
    ],
)
async def test_four_bytes_tell(
    pair: Pair, autojump_clock: trio.testing.MockClock, said: bytes, opening: Identification
) -> None:
    visitor, sock = pair
    visitor.send(said)
    assert await waited(sock)
    assert look(sock, waited=True) is opening
    assert sock.recv(100) == said


@pytest.mark.parametrize(
    ("said", "opening"),
    [
        (b"", Identification.SILENT),
        (b"S", Identification.SILENT),
        (b"SSH", Identification.SILENT),
        (b"G", Identification.FOREIGN),
        (b"SSG", Identification.FOREIGN),
    ],
)
async def test_less_wakes_nobody(
    pair: Pair, autojump_clock: trio.testing.MockClock, said: bytes, opening: Identification
) -> None:
    visitor, sock = pair
    visitor.send(said)
    assert not await waited(sock)
    assert look(sock, waited=False) is opening


@pytest.mark.parametrize(
    ("said", "opening"),
    [
        (b"", Identification.GONE),
        (b"S", Identification.FOREIGN),
        (b"SSH", Identification.FOREIGN),
        (b"SSH-", Identification.SSH),
    ],
)
async def test_an_end_wakes(
    pair: Pair, autojump_clock: trio.testing.MockClock, said: bytes, opening: Identification
) -> None:
    visitor, sock = pair
    visitor.send(said)
    visitor.shutdown(socket.SHUT_WR)
    assert await waited(sock)
    assert look(sock, waited=True) is opening


async def test_so_does_a_reset(pair: Pair, autojump_clock: trio.testing.MockClock) -> None:
    visitor, sock = pair
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    visitor.close()
    assert await waited(sock)
    assert look(sock, waited=True) is Identification.GONE


async def test_afterwards_a_single_byte_wakes_again(
    pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    visitor, sock = pair
    assert not await waited(sock)
    visitor.send(b"x")
    with trio.fail_after(1):
        await trio.lowlevel.wait_readable(sock.fileno())
