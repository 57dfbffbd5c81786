from __future__ import annotations

import hashlib
import socket
from random import Random

import pytest
import trio

from protocol.transport.sockets import send_all
from tests.unit.transport.ends import two_ends, until
from tests.unit.transport.test_splice import LIMIT, receive_to_end, until_over


@pytest.mark.parametrize("seed", range(3))
async def test_streams_outlive_their_links(seed: int) -> None:
    """Cut at times drawn from the seed: every byte arrives once, in order."""
    rng = Random(seed)
    blob = hashlib.shake_256(b"blob%d" % seed).digest(8_000_000)
    with trio.fail_after(LIMIT):
        async with two_ends() as ends:
            visitor, target = await ends.visit()
            received: dict[str, bytes] = {}

            async def send(sock: socket.socket) -> None:
                await send_all(sock, blob)
                sock.shutdown(socket.SHUT_WR)

            async def receive(name: str, sock: socket.socket) -> None:
                received[name] = await receive_to_end(sock)

            async def cut_and_heal(scope: trio.CancelScope) -> None:
                with scope:
                    while True:
                        for _ in range(rng.randrange(1, 40)):
                            await trio.lowlevel.checkpoint()
                        ends.cut()
                        for _ in range(rng.randrange(0, 20)):
                            await trio.lowlevel.checkpoint()
                        await ends.heal()

            cutting = trio.CancelScope()
            async with trio.open_nursery() as chaos:
                chaos.start_soon(cut_and_heal, cutting)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send, visitor)
                    nursery.start_soon(send, target)
                    nursery.start_soon(receive, "visitor", visitor)
                    nursery.start_soon(receive, "target", target)
                cutting.cancel()
            assert received == {"visitor": blob, "target": blob}
            if ends.relay.link is None or ends.agent.link is None:
                await ends.heal()
            await until_over(ends)
            assert ends.lost.count("cut") >= 2
            visitor.close()
            target.close()


async def test_the_other_end_closing_is_a_lost_link_and_no_more() -> None:
    with trio.fail_after(LIMIT):
        async with two_ends() as ends:
            visitor, target = await ends.visit()
            assert ends.relay.link is not None
            ends.relay.drop_link("test")
            await until(lambda: len(ends.lost) == 2)
            assert "closed by the other end" in ends.lost[-1]
            assert not ends.agent.session.attached
            await send_all(visitor, b"while away")
            visitor.shutdown(socket.SHUT_WR)
            await ends.heal()
            assert await receive_to_end(target) == b"while away"
            visitor.close()
            target.close()
