from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from protocol.errors import LocalProtocolError, ResetCode, SessionLost
from protocol.session.events import PublicationConfirmed, StreamOpened
from protocol.session.side import Side
from protocol.transport.endpoint import Endpoint
from protocol.transport.sockets import prepare_spliced, receive_exactly, send_all
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import HEADER_SIZE
from tests.support.ends import new_session, two_ends
from tests.support.sockets import receive_to_end, tcp_pair, was_reset
from tests.support.trio_waiting import until
from tests.support.waiting import LIMIT


async def test_only_what_is_not_about_an_open_stream_is_the_owners() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        await send_all(visitor, b"x")
        await receive_exactly(target, 1)
        visitor.close()
        target.close()
        await until(lambda: not ends.agent.splices)
        kinds = {type(event) for event in ends.events}
        assert PublicationConfirmed in kinds
        assert StreamOpened in kinds
        assert len(kinds) == 3


async def test_frames_for_a_stream_without_a_splice_reach_nobody() -> None:
    """A refused stream: what was under way for it when it ended is no error."""
    async with two_ends(limit=LIMIT) as ends:
        session = ends.relay.session
        for _ in range(3):
            stream = session.open(1, ("203.0.113.9", 4711))
            assert stream is not None
        ends.relay.flush()
        await until(lambda: len(ends.opened) == 3)
        # The owner has not joined any of these.
        session.send(1, [bytearray(HEADER_SIZE + 5)], 5)
        session.finish(3)
        session.reset(5, ResetCode.ABORTED)
        ends.relay.flush()
        await until(lambda: ends.agent.session.received == 1 + 3 + 3)
        assert ends.lost == []


async def test_a_link_that_claims_the_impossible_is_not_carried() -> None:
    async with two_ends(limit=LIMIT) as ends:
        ends.cut()
        (link, _), (other, _) = await ends.shake()
        with pytest.raises(SessionLost, match="peer claims 1000 frames"):
            await ends.agent.carry(link, 1000)
        assert ends.agent.link is None
        link.close()
        other.close()


async def test_a_later_link_is_not_detached_by_the_end_of_an_earlier_one() -> None:
    async with two_ends(limit=LIMIT) as ends:
        ends.agent.drop_link("swap")
        ends.relay.drop_link("swap")
        (link, received), (other, its_received) = await ends.shake()
        # Both start before the earlier ones had a turn to notice their end.
        ends.nursery.start_soon(ends.carry, ends.relay, other, its_received)
        ends.nursery.start_soon(ends.carry, ends.agent, link, received)
        await until(lambda: len(ends.lost) == 2)
        await trio.testing.wait_all_tasks_blocked()
        assert ends.agent.link is link
        assert ends.agent.session.attached
        assert await ends.agent.shows_life(LIMIT)


async def test_without_a_link_nothing_is_sent_and_nothing_fails() -> None:
    endpoint = Endpoint(new_session(Side.AGENT), pool=BufferPool(), on_event=print)
    endpoint.flush()
    endpoint.probe()
    endpoint.drop_link("none")
    assert not await endpoint.shows_life(1)
    endpoint.lose()
    assert not endpoint.session.attached
    with pytest.raises(LocalProtocolError):
        _ = endpoint.session.liveness


async def test_a_lost_session_ends_its_link() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        ends.agent.lose()
        await until(lambda: len(ends.lost) == 2)
        assert "the session is over" in ends.lost
        assert await was_reset(target)
        ends.relay.lose()
        assert await was_reset(visitor)


async def test_readers_of_a_detached_session_fill_the_budget_and_wait() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, target = await ends.visit()
        ends.cut()
        blob = bytes(range(256)) * 2000

        async def send() -> None:
            await send_all(visitor, blob)
            visitor.shutdown(socket.SHUT_WR)

        ends.nursery.start_soon(send)
        window = 64 * 1024
        splice = next(iter(ends.relay.splices.values()))
        await until(lambda: splice.sent == window)
        await ends.heal()
        assert await receive_to_end(target) == blob


async def test_a_stream_refused_while_its_visitor_speaks_takes_no_memory() -> None:
    async with two_ends(limit=LIMIT) as ends:
        visitor, at_relay = tcp_pair()
        prepare_spliced(at_relay)
        stream = ends.relay.session.open(1, ("203.0.113.9", 4711))
        assert stream is not None
        ends.nursery.start_soon(ends.relay.join(stream).run, at_relay)
        ends.relay.flush()
        await until(lambda: bool(ends.opened))
        splice = ends.agent.join(stream)
        await send_all(visitor, bytes(10_000))
        await until(lambda: ends.agent.session.received == 3)
        ends.agent.refuse(splice, ResetCode.TARGET_UNREACHABLE)
        assert await was_reset(visitor)
        assert ends.agent.session.open_streams == 0
        visitor.close()
