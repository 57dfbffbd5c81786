from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from protocol.transport.sockets import send_all
from relay_server.metrics.http import FRESH, MAX_REQUEST, MOST_CALLERS, TIMEOUT, MetricsEndpoint
from relay_server.net.accept_loop import listen, stop_accepting
from tests.support.ports import LOOPBACK
from tests.support.sockets import caller_of, receive_to_end
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock


class Pages:
    def __init__(self) -> None:
        self.asked = 0
        self.up = True

    def page(self) -> bytes:
        self.asked += 1
        return b"number %d\n" % self.asked


@asynccontextmanager
async def serving(pages: Pages, page: Callable[[], bytes] | None = None) -> AsyncIterator[int]:
    sock = listen(LOOPBACK, 0, dual_stack=False)
    async with trio.open_nursery() as nursery:
        endpoint = MetricsEndpoint(page or pages.page, lambda: pages.up, nursery)
        nursery.start_soon(endpoint.serve, sock)
        yield sock.getsockname()[1]
        nursery.cancel_scope.cancel()
    assert sock.fileno() < 0


async def ask(port: int, request: bytes) -> bytes:
    with caller_of(port) as sock:
        await send_all(sock, request)
        return await receive_to_end(sock)


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: relay\r\n\r\n".encode()


@pytest.fixture
def pages() -> Pages:
    return Pages()


async def test_the_numbers(pages: Pages) -> None:
    async with serving(pages) as port:
        head, _, body = (await ask(port, get("/metrics"))).partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"HTTP/1.1 200 OK"
    assert b"Content-Type: text/plain; version=" in head
    assert b"Connection: close" in head
    assert body == b"number 1\n"


async def test_a_second_is_one_reading_however_many_ask(pages: Pages, mock_clock: Clock) -> None:
    async with serving(pages) as port:
        for _ in range(5):
            assert (await ask(port, get("/metrics?x=y"))).endswith(b"number 1\n")
        mock_clock.jump(FRESH - 0.01)
        assert (await ask(port, get("/metrics"))).endswith(b"number 1\n")
        mock_clock.jump(0.01)
        assert (await ask(port, get("/metrics"))).endswith(b"number 2\n")


async def test_health_is_whether_agents_can_dial_in(pages: Pages) -> None:
    async with serving(pages) as port:
        assert (await ask(port, get("/health"))).startswith(b"HTTP/1.1 200 OK")
        pages.up = False
        answer = await ask(port, get("/health"))
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable")
    assert answer.endswith(b"stopping\n")
    assert pages.asked == 0


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (get("/"), b"404 Not Found"),
        (get("/metrics", "POST"), b"405 Method Not Allowed"),
        (get("/health", "DELETE"), b"405 Method Not Allowed"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400 Bad Request"),  # no Host
        (b"SSH-2.0-somebody\r\n\r\n", b"400 Bad Request"),
        (bytes(64), b"400 Bad Request"),
    ],
)
async def test_anything_else_is_an_answer_too(pages: Pages, request_: bytes, answer: bytes) -> None:
    async with serving(pages) as port:
        assert (await ask(port, request_)).startswith(b"HTTP/1.1 " + answer)
        assert (await ask(port, get("/metrics"))).endswith(b"number 1\n")


async def test_head_has_no_body(pages: Pages) -> None:
    async with serving(pages) as port:
        answer = await ask(port, get("/metrics", "HEAD"))
    assert b"Content-Length: 9" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_a_request_byte_by_byte(pages: Pages) -> None:
    async with serving(pages) as port:
        with caller_of(port) as sock:
            for byte in get("/metrics"):
                await send_all(sock, bytes([byte]))
                await trio.lowlevel.checkpoint()
            assert (await receive_to_end(sock)).endswith(b"number 1\n")


@pytest.mark.parametrize(("size", "status"), [(MAX_REQUEST, b"200"), (MAX_REQUEST + 1, b"431")])
async def test_the_size_of_a_request_has_a_bound(pages: Pages, size: int, status: bytes) -> None:
    rest = len(get("/health")) + len(b"X: \r\n")
    request = get("/health").replace(b"\r\n\r\n", b"\r\nX: " + b"x" * (size - rest) + b"\r\n\r\n")
    assert len(request) == size
    async with serving(pages) as port:
        with caller_of(port) as sock:
            # Held back, so that the bound is met by what has no end yet.
            await send_all(sock, request[:-1] if size <= MAX_REQUEST else request[:-4] + b"xxxx")
            await quiet()
            if size <= MAX_REQUEST:
                await send_all(sock, request[-1:])
            assert (await receive_to_end(sock)).startswith(b"HTTP/1.1 " + status)


async def test_who_says_nothing_or_too_little_has_so_much_time(
    pages: Pages, mock_clock: Clock
) -> None:
    async with serving(pages) as port:
        silent, slow = caller_of(port), caller_of(port)
        with silent, slow:
            await send_all(slow, b"GET /metrics HT")
            await quiet()
            mock_clock.jump(TIMEOUT - 0.01)
            await send_all(slow, b"TP/1.1\r\n")
            await quiet()
            with pytest.raises(BlockingIOError):
                silent.recv(1)
            mock_clock.jump(0.01)
            assert await receive_to_end(silent) == b""
            assert await receive_to_end(slow) == b""


async def test_so_many_callers_at_once(pages: Pages, mock_clock: Clock) -> None:
    async with serving(pages) as port:
        callers = [caller_of(port) for _ in range(MOST_CALLERS)]
        await quiet()
        with caller_of(port) as one_more:
            assert await receive_to_end(one_more) == b""
        callers.pop().close()
        await quiet()
        assert (await ask(port, get("/health"))).endswith(b"listening\n")
        for one in callers:
            one.close()


async def test_who_goes_in_the_middle_is_forgotten(pages: Pages) -> None:
    async with serving(pages) as port:
        for said in (b"", b"GET /met", get("/metrics")):
            with caller_of(port) as sock:
                await send_all(sock, said)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await quiet()
        assert b"200 OK" in await ask(port, get("/health"))


async def test_a_bug_in_the_numbers_costs_only_the_answer(
    pages: Pages, log: pytest.LogCaptureFixture
) -> None:
    def fails() -> bytes:
        raise ZeroDivisionError

    async with serving(pages, fails) as port:
        assert await ask(port, get("/metrics")) == b""
        assert (await ask(port, get("/health"))).startswith(b"HTTP/1.1 200")
    assert "fault" in [record.msg for record in log.records]


async def test_it_ends_where_its_socket_is_closed(pages: Pages) -> None:
    sock = listen(LOOPBACK, 0, dual_stack=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(MetricsEndpoint(pages.page, lambda: True, nursery).serve, sock)
        await quiet()
        stop_accepting(sock)
    await until(lambda: sock.fileno() < 0)
