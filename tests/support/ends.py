"""Two endpoints joined by a real TCP connection, for tests of the transport."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from protocol.errors import LinkLost, SessionLost
from protocol.session.events import Event, PublishRequested, StreamOpened
from protocol.session.replay import ReplayCap
from protocol.session.session import Session, SessionOptions
from protocol.session.side import Side
from protocol.transport.endpoint import Endpoint
from protocol.transport.handshake import initiate, respond
from protocol.transport.link import Link
from protocol.transport.sockets import prepare_spliced
from protocol.wire.buffers import BufferPool
from protocol.wire.hello import Hello, Limits, Resume, Welcome
from protocol.wire.identifiers import InstanceId, RelayKey, SessionId
from protocol.wire.noise import StaticKey, Suite
from tests.support.sockets import tcp_pair
from tests.support.trio_waiting import until

LIMITS = Limits(streams=64, stream_window=64 * 1024, session_window=1024 * 1024)


def new_session(side: Side, *, replay: int = 1024 * 1024) -> Session:
    options = SessionOptions(
        limits=LIMITS, window_limit=256 * 1024, replay_limit=replay, replay_cap=ReplayCap(2**30)
    )
    return Session(side=side, options=options, peer=LIMITS)


@dataclass
class Ends:
    """A relay's and an agent's endpoint, one publication between them; `cut` and `heal` at will."""

    nursery: trio.Nursery
    relay: Endpoint = field(init=False)
    agent: Endpoint = field(init=False)
    opened: list[StreamOpened] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    suspicions: int = 0
    visited: list[socket.socket] = field(default_factory=list)
    _wake: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.relay = Endpoint(new_session(Side.RELAY), pool=BufferPool(), on_event=self._at_relay)
        self.agent = Endpoint(
            new_session(Side.AGENT),
            pool=BufferPool(),
            on_event=self._at_agent,
            on_suspicion=self._suspect,
        )
        self.agent.session.publish("ssh", 11111)

    def _suspect(self) -> None:
        self.suspicions += 1

    def _at_relay(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, PublishRequested):
            self.relay.session.published(event.publish.publication, event.publish.port)

    def _at_agent(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, StreamOpened):
            self.opened.append(event)
        self._wake.set()
        self._wake = trio.Event()

    async def wait_agent(self, count: int) -> None:
        """Until the agent's owner has been told `count` events."""
        while sum(not isinstance(event, PublishRequested) for event in self.events) < count:
            await self._wake.wait()

    async def heal(self) -> None:
        """A new link, fully shaken, carrying the session on."""
        at_agent, at_relay = await self.shake()
        self.nursery.start_soon(self.carry, self.relay, *at_relay)
        self.nursery.start_soon(self.carry, self.agent, *at_agent)
        await trio.testing.wait_all_tasks_blocked()

    async def shake(self) -> tuple[tuple[Link, int], tuple[Link, int]]:
        """The two ends of a new link, the agent's first, each with what its peer has received."""
        relay_key, agent_key = StaticKey.generate(), StaticKey.generate()
        at_agent, at_relay = tcp_pair()
        arrivals: list[tuple[Link, int]] = []

        def hello() -> Hello:
            resume = Resume(session=SessionId(bytes(16)), received=self.agent.session.received)
            return Hello(
                instance=InstanceId(bytes(16)),
                epoch=1,
                software="test",
                features=(),
                limits=LIMITS,
                resume=resume,
            )

        async def answer() -> None:
            arrival = await respond(at_relay, statics=[relay_key], verified=lambda: None)
            await arrival.welcome(
                Welcome(
                    session=SessionId(bytes(16)),
                    resumed=True,
                    received=self.relay.session.received,
                    limits=LIMITS,
                    name="home",
                    ports=(11111,),
                    features=(),
                    software="test",
                )
            )
            assert arrival.hello.resume is not None
            arrivals.append((arrival.link, arrival.hello.resume.received))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            link, welcome = await initiate(
                at_agent,
                suite=Suite.CHACHAPOLY,
                static=agent_key,
                relay_key=RelayKey(relay_key.public),
                hello=hello,
            )
        return (link, welcome.received), arrivals[0]

    async def carry(self, endpoint: Endpoint, link: Link, received: int) -> None:
        try:
            await endpoint.carry(link, received)
        except (LinkLost, SessionLost) as exc:
            self.lost.append(str(exc))
        finally:
            link.close()

    def cut(self) -> None:
        self.relay.drop_link("cut")
        self.agent.drop_link("cut")

    async def visit(self) -> tuple[socket.socket, socket.socket]:
        """A stream, spliced at both ends: the visitor's far end and the target's far end."""
        visitor, at_relay = tcp_pair()
        at_agent, target = tcp_pair()
        prepare_spliced(at_relay)
        prepare_spliced(at_agent)
        stream = self.relay.session.open(1, ("203.0.113.9", 4711))
        assert stream is not None
        before = len(self.opened)
        self.nursery.start_soon(self.relay.join(stream).run, at_relay)
        self.relay.flush()
        while len(self.opened) == before:
            await self._wake.wait()
        self.nursery.start_soon(self.agent.join(stream).run, at_agent)
        self.visited += [visitor, target]
        return visitor, target


@asynccontextmanager
async def two_ends(*, limit: float = math.inf) -> AsyncIterator[Ends]:
    """Within `limit` seconds of the test's clock; what visited is closed in the end."""
    with trio.fail_after(limit):
        async with trio.open_nursery() as nursery:
            ends = Ends(nursery)
            await ends.heal()
            yield ends
            nursery.cancel_scope.cancel()
    for sock in ends.visited:
        sock.close()


def check_pool(pool: BufferPool) -> None:
    """No buffer was given back twice."""
    free = pool._free
    assert len({id(buffer) for buffer in free}) == len(free)


async def until_over(ends: Ends) -> None:
    """Until both sides have forgotten every splice and every stream."""
    await until(
        lambda: (
            not ends.relay.splices
            and not ends.agent.splices
            and not ends.relay.session.open_streams
            and not ends.agent.session.open_streams
        )
    )
