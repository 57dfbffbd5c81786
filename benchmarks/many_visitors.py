"""Many visitors at once, a process of its own: one loop plays them all.

    python -m benchmarks.many_visitors ADDRESS PORT idle COUNT
    python -m benchmarks.many_visitors ADDRESS PORT echo COUNT SIZE SECONDS
    python -m benchmarks.many_visitors ADDRESS PORT bulk COUNT SIZE SECONDS
    python -m benchmarks.many_visitors ADDRESS PORT visit RATE SECONDS

    idle     COUNT visitors, each of whom has had one echo, stay until SIGTERM
    echo     COUNT visitors; each says SIZE bytes, and again once they have come back
    bulk     COUNT visitors; each says SIZE bytes whenever its socket takes them
    visit    RATE visitors a second come, have one echo and go; with RATE 0 as many as get through

All but `visit` say "ready" on stdout when every visitor has had its first echo. Then comes a line
of JSON: what came back to each visitor in SECONDS, or a `Visits` as an object.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, TypedDict

from tests.support.far_end import ECHO, HEAD

LINE: Final = b"SSH-2.0-visitor\r\n"
# What one visitor of `bulk` may have in the kernel. By default it would be megabytes, and of a
# thousand of them more than the kernel has for all of TCP.
BULK_BUFFER: Final = 128 << 10
# Of `visit` with RATE 0: enough that nobody on the way is ever idle.
AT_ONCE: Final = 32
# A visitor who has waited so long for an echo is a failure.
PATIENCE: Final = 10.0


class Visits(TypedDict):
    echoes: list[float]  # seconds from coming to the echo, of those who had one
    failed: dict[str, int]  # how many, by what happened
    elapsed: float  # from the first who came to the last who went


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# --- Visitors who stay ---------------------------------------------------------------------------


def come(address: tuple[str, int], *, buffer: int = 0) -> socket.socket:
    """A visitor who has had its first echo."""
    sock = socket.socket()
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(PATIENCE)
    sock.connect(address)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(HEAD.pack(ECHO, 0, 0) + LINE)
    received = b""
    while len(received) < len(LINE):
        data = sock.recv(len(LINE) - len(received))
        if not data:
            raise EOFError("ended instead of an echo")
        received += data
    return sock


def idle(address: tuple[str, int], count: int) -> None:
    visitors = [come(address) for _ in range(count)]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    say("ready")
    signal.sigwait({signal.SIGTERM})
    for sock in visitors:
        sock.close()


def echo(address: tuple[str, int], count: int, size: int, seconds: float) -> list[int]:
    visitors = [come(address) for _ in range(count)]
    say("ready")
    data = bytes(size)
    buffer = memoryview(bytearray(size))
    received = [0] * count
    waiting = [size] * count

    def on_event(number: int, _: int) -> None:
        taken = visitors[number].recv_into(buffer)
        if not taken:
            raise EOFError("ended instead of an echo")
        received[number] += taken
        waiting[number] -= taken
        if not waiting[number]:
            visitors[number].sendall(data)
            waiting[number] = size

    for sock in visitors:
        sock.sendall(data)
    serve(visitors, select.EPOLLIN, on_event, seconds)
    return received


def bulk(address: tuple[str, int], count: int, size: int, seconds: float) -> list[int]:
    visitors = [come(address, buffer=BULK_BUFFER) for _ in range(count)]
    say("ready")
    data = bytes(size)
    buffer = memoryview(bytearray(BULK_BUFFER))
    received = [0] * count

    def on_event(number: int, events: int) -> None:
        sock = visitors[number]
        if events & ~select.EPOLLOUT:
            taken = sock.recv_into(buffer)
            if not taken:
                raise EOFError("ended instead of an echo")
            received[number] += taken
        if events & select.EPOLLOUT:
            sock.send(data)

    for sock in visitors:
        sock.setblocking(False)
    serve(visitors, select.EPOLLIN | select.EPOLLOUT, on_event, seconds)
    return received


def serve(
    visitors: list[socket.socket],
    events: int,
    on_event: Callable[[int, int], None],
    seconds: float,
) -> None:
    """Call `on_event` with the visitor's number and its events, for so many seconds."""
    numbers = {}
    epoll = select.epoll()
    for number, sock in enumerate(visitors):
        epoll.register(sock, events)
        numbers[sock.fileno()] = number
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        for descriptor, happened in epoll.poll(left, len(visitors)):
            on_event(numbers[descriptor], happened)


# --- Visitors who come and go --------------------------------------------------------------------


class Visiting:
    """`rate` visitors a second come for `seconds`, whether or not those before have gone.

    With rate 0 a visitor comes as soon as another has gone.
    """

    def __init__(self, address: tuple[str, int], rate: float, seconds: float) -> None:
        self._address = address
        self._rate = rate
        self._seconds = seconds
        self._epoll = select.epoll()
        # By descriptor: the socket, when its visitor should have come, what it has had so far.
        self._present: dict[int, tuple[socket.socket, float, bytes]] = {}
        self._echoes: list[float] = []
        self._failed: Counter[str] = Counter()

    def run(self) -> Visits:
        began = time.monotonic()
        came = 0
        while True:
            now = time.monotonic()
            coming = now - began < self._seconds
            while coming and self._is_due(came, now - began):
                self._come(began + came / self._rate if self._rate else now)
                came += 1
            if not coming and not self._present:
                break
            if now - began > self._seconds + PATIENCE:
                self._failed["no echo in time"] += len(self._present)
                break
            pause = (came / self._rate - (now - began)) if self._rate and coming else PATIENCE
            for descriptor, events in self._epoll.poll(max(0.0, pause)):
                self._on_event(descriptor, events)
        elapsed = time.monotonic() - began
        return Visits(echoes=self._echoes, failed=dict(self._failed), elapsed=elapsed)

    def _is_due(self, number: int, elapsed: float) -> bool:
        if self._rate:
            return number / self._rate <= elapsed
        return len(self._present) < AT_ONCE

    def _come(self, due: float) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        error = sock.connect_ex(self._address)
        if error not in (0, errno.EINPROGRESS):
            self._failed[os.strerror(error)] += 1
            sock.close()
            return
        self._epoll.register(sock, select.EPOLLOUT)
        self._present[sock.fileno()] = sock, due, b""

    def _on_event(self, descriptor: int, events: int) -> None:
        sock, due, received = self._present[descriptor]
        try:
            if events & select.EPOLLOUT:
                sock.send(HEAD.pack(ECHO, 0, 0) + LINE)
                self._epoll.modify(descriptor, select.EPOLLIN)
                return
            data = sock.recv(len(LINE) - len(received))
        except OSError as exc:
            self._failed[exc.strerror or str(exc)] += 1
        else:
            received += data
            if data and len(received) < len(LINE):
                self._present[descriptor] = sock, due, received
                return
            if data:
                self._echoes.append(time.monotonic() - due)
            else:
                self._failed["end instead of an echo"] += 1
        del self._present[descriptor]
        sock.close()


def main() -> None:
    host, port, what, *rest = sys.argv[1:]
    address = host, int(port)
    gc.disable()  # nothing here is a cycle
    match what, [float(one) for one in rest]:
        case "idle", [count]:
            idle(address, int(count))
        case "echo", [count, size, seconds]:
            say(json.dumps(echo(address, int(count), int(size), seconds)))
        case "bulk", [count, size, seconds]:
            say(json.dumps(bulk(address, int(count), int(size), seconds)))
        case "visit", [rate, seconds]:
            say(json.dumps(Visiting(address, rate, seconds).run()))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
