"""Bots at a public port, of the kinds that are seen there; a process of its own.

    bots.py HOST PORT --source ADDRESS ... --idle N --slow N --stalled N --guessing N

Those who come are spread evenly over the sources. Each is there again `PAUSE` after it was cut, for
as long as stdin is open. Then one line of JSON says what became of them.

    idle       says nothing
    slow       says a byte of its identification a second, and the last of them never
    stalled    stops after its identification, after its KEXINIT, or after its key exchange's first
               message, which costs the server the exchange
    guessing   tries passwords by asyncssh until it is thrown out, or only three a connection
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import struct
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import asyncssh

IDENTIFICATION: Final = b"SSH-2.0-libssh2_1.10.0\r\n"
# Seconds between the bytes of a slow one.
SLOWNESS: Final = 1.0
# Seconds until one that was cut is there again. 800 that come anew each second would be a flood of
# connections, which is something else: 5 s make it 160 a second, eight from each of 20 addresses.
PAUSE: Final = 5.0
# The same after a guess that was answered.
NEXT_GUESS: Final = 0.2
PASSWORDS: Final = ("root", "admin", "123456", "password", "12345", "toor", "qwerty", "letmein")
NAMES: Final = ("root", "root", "admin", "pi", "ubnt")


def packet(payload: bytes) -> bytes:
    """As it is before there are keys (RFC 4253, section 6)."""
    padding = 8 - (5 + len(payload)) % 8
    padding += 8 if padding < 4 else 0
    return struct.pack(">IB", 1 + len(payload) + padding, padding) + payload + bytes(padding)


def _kexinit() -> bytes:
    """What dropbear and OpenSSH both agree to."""
    names = ["curve25519-sha256", "ssh-ed25519,ecdsa-sha2-nistp256,rsa-sha2-256"]
    names += ["aes128-ctr"] * 2 + ["hmac-sha2-256"] * 2 + ["none"] * 2 + ["", ""]
    lists = b"".join(struct.pack(">I", len(text)) + text.encode() for text in names)
    return packet(b"\x14" + bytes(16) + lists + bytes(5))


KEXINIT: Final = _kexinit()
# The base point is a public key as good as any.
KEX_ECDH_INIT: Final = packet(b"\x1e" + struct.pack(">I", 32) + bytes([9]) + bytes(31))
STALLS: Final = (
    IDENTIFICATION,
    IDENTIFICATION + KEXINIT,
    IDENTIFICATION + KEXINIT + KEX_ECDH_INIT,
)


class Bots:
    def __init__(self, host: str, port: int, sources: list[str]) -> None:
        self._host, self._port = host, port
        self._sources = itertools.cycle(sources)
        self._chance = random.Random(0)
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self.count: Counter[str] = Counter()

    def start(self, many: int, kind: Callable[[asyncio.Transport], None], name: str) -> None:
        for _ in range(many):
            self._start(self._stand(next(self._sources), kind, name))

    def start_guessing(self, many: int) -> None:
        for number in range(many):
            # Half of them never give up by themselves.
            most = 3 if number % 2 else 1000
            self._start(self._guess(next(self._sources), most))

    def _start(self, bot: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._loop.create_task(bot))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _stand(
        self, source: str, kind: Callable[[asyncio.Transport], None], name: str
    ) -> None:
        # Not all at the same moment, at first as later.
        await asyncio.sleep(self._chance.uniform(0, PAUSE))
        while True:
            self.count[f"{name}, came"] += 1
            try:
                transport, standing = await self._loop.create_connection(
                    Standing, self._host, self._port, local_addr=(source, 0)
                )
            except OSError:
                self.count[f"{name}, turned away"] += 1
            else:
                kind(transport)
                try:
                    await standing.over
                finally:
                    transport.abort()
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) * PAUSE)

    def say_slowly(self, transport: asyncio.Transport) -> None:
        def say(rest: bytes) -> None:
            if rest and not transport.is_closing():
                transport.write(rest[:1])
                self._loop.call_later(SLOWNESS, say, rest[1:])

        say(IDENTIFICATION[:-1])

    def say_and_stall(self, transport: asyncio.Transport) -> None:
        transport.write(self._chance.choice(STALLS))

    async def _guess(self, source: str, most: int) -> None:
        words: Iterator[str] = itertools.cycle(PASSWORDS)
        while True:
            guesser = Guesser(words, most, self.count)
            self.count["guessing, came"] += 1
            try:
                async with asyncssh.connect(
                    self._host,
                    self._port,
                    local_addr=(source, 0),
                    client_factory=lambda guesser=guesser: guesser,
                    username=self._chance.choice(NAMES),
                    known_hosts=None,
                    config=None,
                    client_keys=None,
                    agent_path=None,
                    preferred_auth="password",
                    # dropbear also offers kinds of which it was given no key.
                    server_host_key_algs=["ssh-ed25519"],
                ):
                    raise AssertionError("a guess was right")
            except (OSError, asyncssh.Error):
                pass
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) * NEXT_GUESS)


class Standing(asyncio.Protocol):
    """Hears all that comes and says nothing to it."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


class Guesser(asyncssh.SSHClient):
    def __init__(self, words: Iterator[str], most: int, count: Counter[str]) -> None:
        self._words, self._left, self._count = words, most, count

    def password_auth_requested(self) -> str | None:
        if not self._left:
            return None
        self._left -= 1
        self._count["passwords tried"] += 1
        return next(self._words)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--source", action="append", required=True)
    for kind in ("idle", "slow", "stalled", "guessing"):
        parser.add_argument(f"--{kind}", type=int, default=0)
    options = parser.parse_args()
    bots = Bots(options.host, options.port, options.source)
    bots.start(options.idle, lambda _: None, "idle")
    bots.start(options.slow, bots.say_slowly, "slow")
    bots.start(options.stalled, bots.say_and_stall, "stalled")
    bots.start_guessing(options.guessing)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await bots.stop()
    sys.stdout.write(json.dumps({**bots.count, "cpu": round(sum(os.times()[:2]), 1)}) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
