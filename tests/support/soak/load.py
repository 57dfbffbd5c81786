"""Who comes: users with their copies and shells, strangers, bots, and an administrator.

All but those who type work in rounds, and rest while the gauges are read. What goes wrong in a
round is kept, and fails the test at its end.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from tests.support.blocking_sockets import PATTERN, receive_to_end, reset, visit
from tests.support.far_end import ECHO, HEAD
from tests.support.ssh import Login
from tests.support.waiting import LONG_LIMIT

HELLO: Final = HEAD.pack(ECHO, 0, 0)
# For what is delayed by a link that is found dead, dialled again and resumed.
PATIENCE: Final = 60.0
# What a stranger waits for the relay to close; the handshake has 5 s, the machine is busy.
HANGUP: Final = 20.0
PREFACE: Final = b"SRLY\x01\x01"


class Floor:
    """Whether the work goes on, rests or is over."""

    def __init__(self) -> None:
        self.going = threading.Event()
        self.over = threading.Event()

    def rest(self, rounds: list[Rounds]) -> None:
        self.going.clear()
        deadline = time.monotonic() + LONG_LIMIT
        for one in rounds:
            left = max(0.0, deadline - time.monotonic())
            assert one.resting.wait(left), f"{one.name} does not come to an end"


class Rounds(threading.Thread):
    def __init__(
        self,
        floor: Floor,
        name: str,
        once: Callable[[], None],
        *,
        pause: float = 0.0,
        spared: type[Exception] | None = None,
    ) -> None:
        """`spared` is what may happen to those whose agent is killed."""
        super().__init__(name=name, daemon=True)
        self._floor, self._once, self._pause = floor, once, pause
        self._spared = () if spared is None else (spared,)
        self.resting = threading.Event()
        self.rounds = 0
        self.broken = 0
        self.problems: list[str] = []

    def run(self) -> None:
        while not self._floor.over.is_set():
            self.resting.set()
            self._floor.going.wait()
            self.resting.clear()
            try:
                if not self._floor.over.is_set():
                    self._once()
                    self.rounds += 1
            except self._spared:
                self.broken += 1
            except Exception as problem:  # kept, and told at the end
                self.problems.append(f"{self.name}: {type(problem).__name__}: {problem}")
            self._floor.over.wait(self._pause)
        self.resting.set()


class Typist(threading.Thread):
    """One connection from the beginning to the end, a few bytes at a time, echoed."""

    PAUSE: Final = 0.05

    def __init__(self, floor: Floor, port: int) -> None:
        super().__init__(daemon=True)
        self._floor = floor
        self._sock = visit(port)
        self._sock.settimeout(PATIENCE)
        self._sock.sendall(HELLO)
        self.said = 0
        self.heard = 0
        self.problem = ""
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def run(self) -> None:
        self._listener.start()
        try:
            while not self._floor.over.wait(self.PAUSE) and not self.problem:
                self._sock.sendall(PATTERN[self.said % 65536 :][:16])
                self.said += 16
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.problem = f"typing: {error}"
        self._listener.join()
        if not self.problem and self.heard != self.said:
            self.problem = f"typed {self.said} bytes, {self.heard} came back"
        self._sock.close()

    def _listen(self) -> None:
        try:
            while data := self._sock.recv(1 << 16):
                for byte in data:
                    place = self.heard // 16 * 16 % 65536 + self.heard % 16
                    assert byte == PATTERN[place], f"byte {self.heard} is another"
                    self.heard += 1
        except (OSError, AssertionError) as error:
            self.problem = f"after {self.heard} bytes: {error}"


class Users:
    """What they do once; each is a round."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.copied = 0  # bytes, there and back

    def _source(self, net: int) -> str:
        return f"127.0.{net}.{self._random.randrange(1, 250)}"

    def copy(self, port: int) -> None:
        """Some megabytes both ways at once, to the end; every byte is looked at."""
        data = PATTERN[: self._random.randrange(100_000, len(PATTERN))]
        with visit(port, source=self._source(3)) as visitor:
            visitor.settimeout(PATIENCE)
            sender = threading.Thread(target=_send, args=(visitor, HELLO + data), daemon=True)
            sender.start()
            came = receive_to_end(visitor)
            sender.join(PATIENCE)
        assert came == data, f"{len(came)} of {len(data)} bytes came back, or others"
        self.copied += 2 * len(data)

    def come_and_go(self, port: int) -> None:
        """Without a word, in the middle of one, or with an answer unread."""
        visitor = visit(port, source=self._source(4))
        visitor.sendall((HELLO + PATTERN[:50_000])[: self._random.choice([0, 5, 2000, 60_000])])
        if self._random.random() < 0.5:
            reset(visitor)
        else:
            visitor.close()

    def log_in(self, login: Login, port: int) -> None:
        size = self._random.randrange(100_000)
        done = login.ssh(port, f"head -c {size} /dev/zero | tr '\\0' x; cat; exit 3")
        assert done.returncode == 3, f"status {done.returncode}: {done.stderr}"
        assert done.stdout == "x" * size, f"{len(done.stdout)} of {size} characters came"


def _send(visitor: socket.socket, data: bytes) -> None:
    # How it ends is judged by what comes back.
    with contextlib.suppress(OSError):
        visitor.sendall(data)
        visitor.shutdown(socket.SHUT_WR)


class Strangers:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bots(self, port: int) -> None:
        """Eight who log in never; the SSH server bears five of one address."""
        with contextlib.ExitStack() as stack:
            for number in range(8):
                bot = visit(port, source=f"127.0.1.{self._random.randrange(1, 250)}")
                stack.enter_context(bot)
                if number % 2:
                    with contextlib.suppress(OSError):  # the guard has cut it already
                        bot.sendall(b"SSH-2.0-bot\r\n")
            time.sleep(self._random.uniform(1, 4))

    def garbage(self, port: int) -> None:
        """At the port for agents: whatever they send, they get no byte and are cut."""
        said = self._random.choice(
            [
                b"",
                b"\0",
                b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                PREFACE,
                PREFACE + b"\0\x30" + self._random.randbytes(48),
                PREFACE + b"\xff\xff" + self._random.randbytes(5000),
                self._random.randbytes(self._random.randrange(1, 5000)),
            ]
        )
        with visit(port, source=f"127.0.2.{self._random.randrange(1, 250)}") as stranger:
            stranger.settimeout(HANGUP)
            with contextlib.suppress(ConnectionError):
                stranger.sendall(said)
                answer = stranger.recv(1)
                assert answer == b"", "a stranger is answered"
