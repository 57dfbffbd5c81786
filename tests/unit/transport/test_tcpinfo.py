from __future__ import annotations

import socket

import pytest
import trio

from protocol.transport.sockets import receive_exactly, send_all
from protocol.transport.tcpinfo import tcp_info
from tests.unit.transport.ends import tcp_pair, until


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


def test_a_closed_socket_has_none() -> None:
    first, second = tcp_pair()
    first.close()
    second.close()
    assert tcp_info(first) is None


def test_an_older_kernel_tells_less(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def getsockopt(self, *_: int) -> bytes:
            return bytes(104)

    assert tcp_info(Old()) is None  # type: ignore[arg-type]  # stands in for a socket
    monkeypatch.delattr(socket, "TCP_INFO")
    first, second = tcp_pair()
    with first, second:
        assert tcp_info(first) is None
