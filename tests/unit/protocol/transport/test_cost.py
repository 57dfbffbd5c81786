"""What the data path costs, counted and not timed: the same on any machine.

Both ends of a link, a visitor and a target run in this one process over real sockets, and every
call is counted, Python's and C's. Their number moves by a few percent with how the kernel cuts what
it delivers; the bounds leave a quarter. Who breaks one has made every byte of every user dearer:
take the profile (`python -m cProfile`) before the bound.
"""

from __future__ import annotations

import collections
import select
import socket
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import trio

from protocol.transport.sockets import receive_exactly, send_all
from tests.support.ends import two_ends

MIB: Final = 1024 * 1024
KEYSTROKE: Final = b"x" * 64
# Each measured with CPython 3.11 to 3.13 (705, 3,120, 26, 59), plus a quarter. A third of them is
# trio's, and a fifth this test's own two ends.
CALLS_PER_ROUND_TRIP: Final = 880
CALLS_PER_MIB: Final = 3900
SYSTEM_CALLS_PER_ROUND_TRIP: Final = 32
SYSTEM_CALLS_PER_MIB: Final = 74
# What eight times as much may add to the peak, which is what windows, replay and pools allow: a
# few buffers that happen to be under way at once.
PEAK: Final = MIB // 2


class Count:
    def __init__(self) -> None:
        self.calls = 0
        self.system_calls = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_globals["__name__"].startswith("cryptography"):
            return  # older ones are Python inside, which is their affair
        if event == "call":
            self.calls += 1
        elif event == "c_call":
            self.calls += 1
            owner = getattr(argument, "__self__", None)
            # `fileno` asks nobody.
            asks = isinstance(owner, socket.socket | select.epoll)
            if argument.__name__ == "ioctl" or (asks and argument.__name__ != "fileno"):
                self.system_calls += 1


@contextmanager
def counted() -> Iterator[Count]:
    count = Count()
    sys.setprofile(count)
    try:
        yield count
    finally:
        sys.setprofile(None)


async def type_and_echo(visitor: socket.socket, target: socket.socket, times: int) -> None:
    for _ in range(times):
        await send_all(visitor, KEYSTROKE)
        await receive_exactly(target, len(KEYSTROKE))
        await send_all(target, KEYSTROKE)
        await receive_exactly(visitor, len(KEYSTROKE))


async def copy(visitor: socket.socket, target: socket.socket, mebibytes: int) -> None:
    data, area = bytes(MIB), bytearray(MIB)

    async def send() -> None:
        for _ in range(mebibytes):
            await send_all(visitor, data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        left = mebibytes * MIB
        while left:
            try:
                left -= target.recv_into(area)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(target)


Work = Callable[[socket.socket, socket.socket, int], Awaitable[None]]


async def cost_of(work: Work, units: int) -> Count:
    """Of the cheapest of three rounds, per unit, once all is warm."""
    rounds = []
    async with two_ends() as ends:
        visitor, target = await ends.visit()
        await work(visitor, target, units)
        for _ in range(3):
            with counted() as count:
                await work(visitor, target, units)
            rounds.append(count)
        visitor.close()
        target.close()
    best = min(rounds, key=lambda count: count.calls)
    best.calls //= units
    best.system_calls //= units
    return best


async def test_a_keystroke_and_its_echo() -> None:
    cost = await cost_of(type_and_echo, 200)
    assert 100 < cost.calls < CALLS_PER_ROUND_TRIP
    assert 12 < cost.system_calls < SYSTEM_CALLS_PER_ROUND_TRIP


async def test_a_mebibyte() -> None:
    cost = await cost_of(copy, 50)
    assert 100 < cost.calls < CALLS_PER_MIB
    assert 4 < cost.system_calls < SYSTEM_CALLS_PER_MIB


async def test_memory_does_not_grow_with_what_is_carried() -> None:
    peaks = []
    async with two_ends() as ends:
        visitor, target = await ends.visit()
        await copy(visitor, target, 8)
        tracemalloc.start()
        try:
            for mebibytes in (8, 64):
                tracemalloc.reset_peak()
                await copy(visitor, target, mebibytes)
                peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        visitor.close()
        target.close()
    assert peaks[1] - peaks[0] < PEAK, peaks


def test_the_counter_counts() -> None:
    first, second = socket.socketpair()
    with first, second, counted() as count:
        first.send(b"x")
        collections.deque([1]).append(2)
    assert count.system_calls == 1
    assert count.calls >= 3
