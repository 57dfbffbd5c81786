"""Two sockets ready in one turn: what the one direction meets must not be misread by the other."""

from __future__ import annotations

import pytest
import trio

from protocol.transport.sockets import send_all
from protocol.wire.frame import HEADER_SIZE
from tests.support.blocking_sockets import reset
from tests.support.ends import two_ends
from tests.support.sockets import was_reset
from tests.support.trio_waiting import until
from tests.support.waiting import LIMIT


@pytest.mark.parametrize("attempt", range(12))
async def test_a_write_that_meets_the_reset_first_does_not_make_it_an_end(attempt: int) -> None:
    """The order of the two in one turn is trio's to draw, so a dozen draws."""
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        await send_all(visitor, b"x")
        await trio.lowlevel.wait_readable(target)
        # Both reach the agent's process before its next turn.
        stream = next(iter(ends.relay.splices))
        ends.relay.session.send(stream, [bytearray(HEADER_SIZE + 1000)], 1000)
        ends.relay.flush()
        reset(target)
        assert await was_reset(visitor)
        visitor.close()
        await until(lambda: not ends.agent.splices)
