"""Trio's own checks of a half-closeable stream, run on a visitor's and a target's socket.

What lies between the two is a relay and an agent, joined by a real link: together they must behave
as one TCP connection would. The checks on a stream that is full are left out: they are about two
tasks that use trio's own end of it at once.
"""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from protocol.transport import splice
from tests.support.ends import two_ends
from tests.support.waiting import LIMIT


def stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def test_a_visitor_and_a_target_are_the_ends_of_one_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One TCP connection would refuse at once what is sent to a reader that is gone. We wait, lest a
    # reset destroy what the other direction has delivered and nobody has read yet.
    monkeypatch.setattr(splice, "DISCARD_SECONDS", 0.01)
    with trio.fail_after(3 * LIMIT):
        async with two_ends() as ends:

            async def make() -> tuple[trio.SocketStream, trio.SocketStream]:
                visitor, target = await ends.visit()
                return stream(visitor), stream(target)

            async def make_reversed() -> tuple[trio.SocketStream, trio.SocketStream]:
                visitor, target = await make()
                return target, visitor

            await trio.testing.check_half_closeable_stream(make, None)
            await trio.testing.check_half_closeable_stream(make_reversed, None)
