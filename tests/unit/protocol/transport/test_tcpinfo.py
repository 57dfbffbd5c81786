from __future__ import annotations

import contextlib
import socket

import pytest
import trio

from protocol.transport.sockets import receive_exactly, send_all
from protocol.transport.tcpinfo import tcp_info, unsent
from tests.support.sockets import tcp_pair
from tests.support.trio_waiting import until


def acked(sock: socket.socket) -> int:
    info = tcp_info(sock)
    assert info is not None
    return info.bytes_acked


async def test_it_counts_what_the_other_kernel_has() -> None:
    first, second = tcp_pair()
    with first, second, trio.fail_after(10):
        before = acked(first)
        await send_all(first, bytes(1000))
        await receive_exactly(second, 1000)
        await until(lambda: acked(first) == before + 1000)
        info = tcp_info(first)
        assert info is not None
        assert 0 <= info.ack_age < 10
        assert info.segment > 500
        assert info.rate > 0
        assert 0 < info.min_rtt < 1


def test_a_closed_socket_has_none() -> None:
    first, second = tcp_pair()
    first.close()
    second.close()
    assert tcp_info(first) is None


def test_the_application_s_limit_is_told_from_the_path_s() -> None:
    first, second = tcp_pair()
    with first, second:
        first.send(b"x")  # far less than the path takes
        second.recv(1)
        info = tcp_info(first)
        assert info is not None
        assert info.app_limited


def test_what_the_kernel_has_not_sent_is_counted() -> None:
    first, second = tcp_pair()
    with second:
        assert unsent(first) == 0
        second.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(BlockingIOError):
            while True:
                first.send(bytes(65536))
        assert unsent(first) > 65536
        first.close()
    assert unsent(first) == 0


class Kernel:
    """A socket of one that tells less."""

    def __init__(self, size: int) -> None:
        self.size = size

    def getsockopt(self, *_: int) -> bytes:
        return bytes(self.size)


def test_an_older_kernel_tells_less(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tcp_info(Kernel(104)) is None  # type: ignore[arg-type]  # stands in for a socket
    info = tcp_info(Kernel(128))  # type: ignore[arg-type]  # the same
    assert info is not None
    assert info.rate == 0
    assert info.min_rtt == 0
    monkeypatch.delattr(socket, "TCP_INFO")
    first, second = tcp_pair()
    with first, second:
        assert tcp_info(first) is None
