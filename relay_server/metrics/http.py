"""`/metrics` for Prometheus and `/health` for whatever looks after the relay, over HTTP.

    GET /metrics   200  all numbers, at most a second old
    GET /health    200  agents can dial in, and the loop that serves them has answered
                   503  the relay is stopping
    anything else  404, 405 or 400

One answer a connection. What a caller may cost is bounded: in size, in time, in connections, and
all together to one reading of the numbers a second. There is no password and no TLS: the address is
for the owner to choose, and a proxy's to guard.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import h11
import trio
from prometheus_client import CONTENT_TYPE_LATEST

from protocol.wire.identifiers import SocketAddress
from relay_server.net.accept_loop import accept_forever
from relay_server.net.fault_isolation import contained

# A line and a dozen headers; Prometheus sends half a KiB.
MAX_REQUEST: Final = 8 * 1024
# From accept to the last byte. Prometheus itself waits for ten.
TIMEOUT: Final = 5.0
# A pair of servers that scrape, somebody at a browser, and a few that hang until TIMEOUT.
MOST_CALLERS: Final = 16
# How old the numbers may be. 200 agents cost some 5 ms of everybody's turn, and nobody scrapes more
# often.
FRESH: Final = 1.0

_TEXT: Final = "text/plain; charset=utf-8"


class MetricsEndpoint:
    def __init__(
        self, page: Callable[[], bytes], is_listening: Callable[[], bool], nursery: trio.Nursery
    ) -> None:
        """`page` gives the metrics; `is_listening` says whether agents can dial in."""
        self._page = page
        self._is_listening = is_listening
        self._nursery = nursery
        self._callers = 0
        self._cached = b""
        self._fresh_until = -FRESH

    async def serve(self, sock: socket.socket) -> None:
        with sock:
            await accept_forever(sock, self._on_caller)

    def _on_caller(self, sock: socket.socket, _: SocketAddress) -> None:
        if self._callers >= MOST_CALLERS:
            sock.close()
            return
        self._callers += 1
        sock.setblocking(False)
        self._nursery.start_soon(
            self._greet, trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        )

    async def _greet(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                # Whoever goes in the middle has no need of an answer.
                gone = contextlib.suppress(trio.BrokenResourceError)
                with contained(), trio.move_on_after(TIMEOUT), gone:
                    await stream.send_all(await self._exchange(stream))
        finally:
            self._callers -= 1

    async def _exchange(self, stream: trio.SocketStream) -> bytes:
        """The answer to what `stream` asks; nothing, if it ends before."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        try:
            asked = http.next_event()
            while asked is h11.NEED_DATA:
                http.receive_data(await stream.receive_some(MAX_REQUEST))
                asked = http.next_event()
            if not isinstance(asked, h11.Request):
                return b""
            status, kind, body = self._answer(asked)
        except h11.RemoteProtocolError as error:
            asked, kind = None, _TEXT
            status, body = error.error_status_hint, b"not understood\n"
        headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
        headers.append(("Connection", "close"))
        if status == 405:
            headers.append(("Allow", "GET, HEAD"))
        reason = HTTPStatus(status).phrase
        response = h11.Response(status_code=status, headers=headers, reason=reason)
        answer = http.send(response) or b""
        if asked is None or asked.method != b"HEAD":
            answer += http.send(h11.Data(data=body)) or b""
        return answer

    def _answer(self, asked: h11.Request) -> tuple[int, str, bytes]:
        if asked.method not in (b"GET", b"HEAD"):
            return 405, _TEXT, b"only GET\n"
        match asked.target.partition(b"?")[0]:
            case b"/metrics":
                return 200, CONTENT_TYPE_LATEST, self._numbers()
            case b"/health":
                up = self._is_listening()
                return (200, _TEXT, b"listening\n") if up else (503, _TEXT, b"stopping\n")
        return 404, _TEXT, b"only /metrics and /health\n"

    def _numbers(self) -> bytes:
        now = trio.current_time()
        if now >= self._fresh_until:
            self._cached, self._fresh_until = self._page(), now + FRESH
        return self._cached
