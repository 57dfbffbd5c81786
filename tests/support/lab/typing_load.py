"""A keyboard beside full-speed copies: its two ends, as processes of their own.

    python -m tests.support.lab.typing_load far PORT
    python -m tests.support.lab.typing_load near VPS LAPTOP ROUTER PORT

`far` is what the agent reaches: a visitor's first byte says whether it echoes, gives bytes without
end, or takes them. On the same port of UDP it answers pings, which need no carrier.

`near` is the visitor. Told to measure, it opens its copies, and when those are under way says 64
bytes now and then: once through the carrier, and at the same moment in a ping to `far`. Both
answers wait in the same queue of the path, and what an echo takes beyond its ping is the carrier's.

It enters the namespace VPS or LAPTOP for each socket it opens, as one thread may. Pings leave from
the VPS, since they go straight to the router. Commands are JSON, one a line on stdin, each answered
by one line on stdout; either process ends with the end of its stdin.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

from tests.support.lab.namespace import Namespace, enter
from tests.support.repository import ROOT

ECHO: Final = b"E"
GIVE: Final = b"G"
TAKE: Final = b"T"

Way: TypeAlias = Literal["up", "down"]

# What a keystroke of an interactive ssh comes to, roughly, and what the answer does.
SIZE: Final = 64
_NUMBER: Final = struct.Struct(f">I{SIZE - 4}x")
_COUNT: Final = struct.Struct(">Q")
# How often `far` says how much it took: often enough for a measurement of seconds.
_TELL: Final = 0.05
# Of a lost ping nothing is ever heard: how long to wait for the last ones.
_PING_PATIENCE: Final = 1.0
_CONNECTING: Final = 30.0
_PIECE: Final = 1 << 17


# --- The far end ---------------------------------------------------------------------------------


class Far:
    def __init__(self, port: int) -> None:
        self._ready = selectors.DefaultSelector()
        self._piece = bytes(_PIECE)
        self._area = bytearray(_PIECE)
        self._visitors = socket.create_server(("0.0.0.0", port), backlog=64)
        self._pings = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._pings.bind(("0.0.0.0", port))
        self._watch(self._visitors, selectors.EVENT_READ, self._accept)
        self._watch(self._pings, selectors.EVENT_READ, self._answer_ping)

    def run(self) -> None:
        self._ready.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in self._ready.select():
                if key.fd == 0:
                    return
                try:
                    key.data()
                except OSError:  # the visitor has left
                    assert isinstance(key.fileobj, socket.socket)
                    self._drop(key.fileobj)

    def _watch(self, sock: socket.socket, events: int, act: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._ready.register(sock, events, act)

    def _drop(self, sock: socket.socket) -> None:
        self._ready.unregister(sock)
        sock.close()

    def _answer_ping(self) -> None:
        data, sender = self._pings.recvfrom(SIZE)
        self._pings.sendto(data, sender)

    def _accept(self) -> None:
        visitor, _ = self._visitors.accept()
        visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _use_cubic(visitor)
        self._watch(visitor, selectors.EVENT_READ, lambda: self._begin(visitor))

    def _begin(self, visitor: socket.socket) -> None:
        wish = visitor.recv(1)
        if wish == GIVE:
            self._ready.modify(visitor, selectors.EVENT_WRITE, lambda: self._give(visitor))
        elif wish == TAKE:
            taking = _Taking(visitor, self._area, self._drop)
            self._ready.modify(visitor, selectors.EVENT_READ, taking.take)
        elif wish == ECHO:
            self._ready.modify(visitor, selectors.EVENT_READ, lambda: self._echo(visitor))
        else:
            self._drop(visitor)

    def _give(self, visitor: socket.socket) -> None:
        visitor.send(self._piece)

    def _echo(self, visitor: socket.socket) -> None:
        data = visitor.recv(_PIECE)
        if not data:
            self._drop(visitor)
            return
        # So little is said that it always fits.
        assert visitor.send(data) == len(data)


class _Taking:
    def __init__(
        self, visitor: socket.socket, area: bytearray, drop: Callable[[socket.socket], None]
    ) -> None:
        self._visitor = visitor
        self._area = area
        self._drop = drop
        self._taken = 0
        self._due = 0.0

    def take(self) -> None:
        size = self._visitor.recv_into(self._area)
        if not size:
            self._drop(self._visitor)
            return
        self._taken += size
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _TELL
            self._visitor.send(_COUNT.pack(self._taken))


# --- The near end --------------------------------------------------------------------------------


class Keyboard:
    """What is said, and when the answers came; times are seconds after `began`."""

    def __init__(self, echoing: socket.socket, pinging: socket.socket) -> None:
        self._echoing = echoing
        self._pinging = pinging
        self._rest = b""
        self.began = time.monotonic()
        self.said: list[float] = []
        self.echoes: list[float] = []  # in the order of what was said
        self.pings: dict[int, float] = {}

    def say(self) -> None:
        message = _NUMBER.pack(len(self.said))
        self.said.append(self._now())
        self._echoing.send(message)
        self._pinging.send(message)

    def hear_echo(self) -> None:
        data = self._echoing.recv(_PIECE)
        now = self._now()
        assert data, "the echo ended"
        self._rest += data
        while len(self._rest) >= SIZE:
            (number,) = _NUMBER.unpack_from(self._rest)
            self._rest = self._rest[SIZE:]
            assert number == len(self.echoes), f"echo {number} instead of {len(self.echoes)}"
            self.echoes.append(now - self.said[number])

    def hear_ping(self) -> None:
        (number,) = _NUMBER.unpack(self._pinging.recv(SIZE))
        if number < len(self.said):  # else a late one, of a measurement that was given up
            self.pings[number] = self._now() - self.said[number]

    def _now(self) -> float:
        return time.monotonic() - self.began


class Copy:
    """One that goes on until it is reset; `moved` is what has come out at its other end."""

    def __init__(self, sock: socket.socket, way: Way, area: bytearray) -> None:
        self._sock = sock
        self._area = area
        self._piece = memoryview(bytes(_PIECE))
        self._rest = b""
        self.way = way
        self.moved = 0
        sock.send(GIVE if way == "up" else TAKE)

    def receive(self) -> None:
        if self.way == "up":
            size = self._sock.recv_into(self._area)
            self.moved += size
        else:
            told = self._sock.recv(_PIECE)
            size = len(told)
            self._rest += told
            whole = len(self._rest) // _COUNT.size * _COUNT.size
            if whole:
                (self.moved,) = _COUNT.unpack_from(self._rest, whole - _COUNT.size)
                self._rest = self._rest[whole:]
        assert size, "a copy ended"

    def send(self) -> None:
        self._sock.send(self._piece)


class Near:
    def __init__(self, vps: str, laptop: str, router: str, port: int) -> None:
        self._namespaces = {"vps": vps, "laptop": laptop}
        self._router = router
        self._port = port
        self._area = bytearray(_PIECE)

    def run(self) -> None:
        for line in sys.stdin:
            _say(self.measure(**json.loads(line)))

    def measure(
        self,
        *,
        via: str,
        host: str,
        port: int,
        copies: int,
        way: Way,
        warm: float,
        seconds: float,
        pause: float,
        patience: float,
        seed: int,
    ) -> dict[str, Any]:
        """Say something every `pause` seconds or so, for so many `seconds`, after `warm` ones.

        Not at fixed intervals, so that nothing periodic can keep step. The copies go on until all
        echoes have come, or `patience` has run out; one that never came is None.
        """
        opened: list[socket.socket] = []

        def connect() -> socket.socket:
            enter(self._namespaces[via])
            opened.append(socket.create_connection((host, port), timeout=_CONNECTING))
            opened[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return opened[-1]

        with selectors.DefaultSelector() as ready:
            try:
                echoing = connect()
                # The whole way exists before anything is measured.
                echoing.sendall(ECHO + bytes(SIZE))
                _receive(echoing, SIZE)
                enter(self._namespaces["vps"])
                opened.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                pinging = opened[-1]
                pinging.connect((self._router, self._port))
                keyboard = Keyboard(echoing, pinging)
                ready.register(echoing, selectors.EVENT_READ, (keyboard.hear_echo, None))
                ready.register(pinging, selectors.EVENT_READ, (keyboard.hear_ping, None))
                streams = []
                for _ in range(copies):
                    sock = connect()
                    stream = Copy(sock, way, self._area)
                    streams.append(stream)
                    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if way == "down" else 0)
                    ready.register(sock, events, (stream.receive, stream.send))
                for sock in opened:
                    sock.setblocking(False)
                opens = time.monotonic() + warm
                chance = random.Random(seed)
                return _observe(
                    ready, keyboard, streams, opens, seconds, patience,
                    lambda: pause * chance.uniform(0.5, 1.5),
                )  # fmt: skip
            finally:
                for sock in opened:
                    # Reset, so that nothing of it goes on.
                    linger = struct.pack("ii", 1, 0)
                    if sock.type == socket.SOCK_STREAM:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    sock.close()


def _observe(
    ready: selectors.BaseSelector,
    keyboard: Keyboard,
    streams: list[Copy],
    opens: float,
    seconds: float,
    patience: float,
    pause: Callable[[], float],
) -> dict[str, Any]:
    closes = opens + seconds
    due = opens
    before: tuple[float, list[int]] | None = None
    after: tuple[float, list[int]] | None = None
    while True:
        now = time.monotonic()
        if before is None and now >= opens:
            before = now, [stream.moved for stream in streams]
        if after is None and now >= closes:
            after = now, [stream.moved for stream in streams]
        if due <= now < closes:
            keyboard.say()
            due = max(due + pause(), now)
        if before is not None and after is not None:
            echoed = len(keyboard.echoes) == len(keyboard.said)
            pinged = len(keyboard.pings) == len(keyboard.said)
            if (echoed and (pinged or now >= closes + _PING_PATIENCE)) or now >= closes + patience:
                break
            wake = now + _TELL
        else:
            wake = min(due, closes)
        for key, events in ready.select(max(0.0, wake - time.monotonic())):
            receive, send = key.data
            if events & selectors.EVENT_READ:
                receive()
            if events & selectors.EVENT_WRITE:
                send()
    count = len(keyboard.said)
    return {
        "said": keyboard.said,
        "echoes": keyboard.echoes + [None] * (count - len(keyboard.echoes)),
        "pings": [keyboard.pings.get(number) for number in range(count)],
        "seconds": after[0] - before[0],
        "copies": [b - a for a, b in zip(before[1], after[1], strict=True)],
    }


def _receive(sock: socket.socket, size: int) -> None:
    while size:
        data = sock.recv(size)
        assert data, "the carrier ended what it should carry"
        size -= len(data)


def _use_cubic(sock: socket.socket) -> None:
    """On loopback, where no route of the lab says so."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")


# --- Starting them -------------------------------------------------------------------------------


class End:
    """One of the two processes, started in `namespace`."""

    def __init__(self, namespace: Namespace, *arguments: str) -> None:
        argv = [sys.executable, "-m", "tests.support.lab.typing_load", *arguments]
        pipe = subprocess.PIPE
        with namespace.entered():
            self._popen = subprocess.Popen(argv, cwd=ROOT, text=True, stdin=pipe, stdout=pipe)
        self._answer()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def command(self, **arguments: object) -> dict[str, Any]:
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(arguments) + "\n")
        self._popen.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line, f"an end of the load ended with status {self._popen.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.wait()
        self._popen.stdout.close()


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> int:
    match sys.argv[1:]:
        case ["far", port]:
            far = Far(int(port))
            _say({"pid": os.getpid()})
            far.run()
        case ["near", vps, laptop, router, port]:
            near = Near(vps, laptop, router, int(port))
            _say({"pid": os.getpid()})
            near.run()
        case _:
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
