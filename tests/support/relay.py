"""A relay and agents in one process, over real loopback sockets, for tests of the relay.

Where time matters it is a `MockClock` that stands still until the test moves it: bytes take no
time, waiting does. (An autojump clock would jump while bytes are under way.)
"""

from __future__ import annotations

import logging
import secrets
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from protocol.errors import DenialCode, LinkDenied, LinkLost, SessionLost
from protocol.process.state import StateFolder
from protocol.session.events import Event, PublicationConfirmed, PublicationRefused, StreamOpened
from protocol.session.side import Side
from protocol.transport.endpoint import Endpoint
from protocol.transport.handshake import initiate
from protocol.transport.link import Link
from protocol.transport.sockets import prepare_spliced, receive_exactly
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import CloseCode, Refused
from protocol.wire.hello import Hello, Resume, Welcome
from protocol.wire.identifiers import AgentKey, InstanceId, RelayKey, SessionId, Token
from protocol.wire.noise import StaticKey, Suite
from relay_server.agents.agent_state import AgentState
from relay_server.agents.context import RelayContext
from relay_server.agents.handshakes import Handshakes
from relay_server.agents.manager import Agents
from relay_server.config import ServerConfig
from relay_server.net import fault_isolation
from relay_server.net.accept_loop import accept_forever, listen
from relay_server.net.fd_store import StoredListeners
from relay_server.process.handover import Found
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import RelayKeys
from tests.support.ends import LIMITS, new_session
from tests.support.ports import LOOPBACK, free_port
from tests.support.sockets import caller_of, tcp_pair
from tests.support.trio_waiting import quiet, until


class Faults(logging.Handler):
    """The contained ones: in no test may there be more than it asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._met: list[logging.LogRecord] = []
        self._logger = logging.getLogger(fault_isolation.__name__)

    def __enter__(self) -> Faults:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        assert not self._met, [logging.Formatter().format(one) for one in self._met]

    def emit(self, record: logging.LogRecord) -> None:
        self._met.append(record)

    async def take(self) -> logging.LogRecord:
        """The one that there is, once it is there."""
        await until(lambda: self._met)
        (one,) = self._met
        self._met.clear()
        return one


@dataclass
class Relay:
    context: RelayContext
    agents: Agents
    handshakes: Handshakes
    port: int  # where agents dial
    faults: Faults
    leftovers: list[socket.socket | Link] = field(default_factory=list)  # closed in the end

    @property
    def config(self) -> ServerConfig:
        return self.context.config

    @property
    def registry(self) -> Registry:
        return self.context.registry

    @property
    def keys(self) -> RelayKeys:
        return self.context.keys

    @property
    def nursery(self) -> trio.Nursery:
        return self.context.nursery

    @property
    def key(self) -> StaticKey:
        return self.keys.current

    def rotate(self) -> StaticKey:
        """The former key."""
        former = self.keys.current
        self.keys.current = StaticKey.generate()
        self.keys.former = (former, *self.keys.former)
        return former

    def enrol(self, name: str = "home", *ports: int, key: StaticKey | None = None) -> Router:
        """An agent that may publish `ports`; without any, one of the relay's choice."""
        router = Router(self, key or StaticKey.generate())
        self.registry.redeem(self.invite(name, *ports), AgentKey(router.key.public), 0.0)
        return router

    async def attached(self, name: str = "home", *ports: int, silent: bool = False) -> Router:
        """One that is enrolled now, and attached."""
        router = self.enrol(name, *ports)
        await router.attach(silent=silent)
        return router

    def invite(self, name: str, *ports: int) -> Token:
        token = Token(secrets.token_bytes(16))
        self.registry.invite(
            name, token, now=0.0, lifetime=1e12, ports=ports, port_range=range(11111, 12111)
        )
        return token

    def take_away(self, port: int) -> None:
        """As an owner may who edits the database: no command takes a single port away."""
        with closing(sqlite3.connect(self.registry._path)) as db, db:
            db.execute("DELETE FROM ports WHERE port = ?", (port,))

    def agent(self, router: Router) -> AgentState:
        return self.agents._present[AgentKey(router.key.public)]


@asynccontextmanager
async def running(
    folder: Path, *, found: Found | None = None, **changes: Any
) -> AsyncIterator[Relay]:
    """`found`: what the relay before it in this folder has left."""
    state = StateFolder(folder / "relay")
    state.ensure()
    defaults: dict[str, Any] = {"bind": LOOPBACK}
    config = ServerConfig(**(defaults | changes))
    keys = RelayKeys(StaticKey.generate())
    with (
        closing(Registry(state)) as registry,
        listen(LOOPBACK, 0, dual_stack=False) as sock,
        Faults() as faults,
    ):
        async with trio.open_nursery() as nursery:
            context = RelayContext(config, registry, keys, nursery, StoredListeners())
            agents = Agents(context)
            if found is not None:
                found.restore(agents, registry)
            handshakes = Handshakes(context, agents)
            nursery.start_soon(accept_forever, sock, handshakes.on_caller)
            port = sock.getsockname()[1]
            relay = Relay(context, agents, handshakes, port, faults)
            yield relay
            nursery.cancel_scope.cancel()
        for one in relay.leftovers:
            one.close()


@dataclass
class Router:
    """One agent process; `again` is the next one with the same key."""

    relay: Relay
    key: StaticKey
    instance: InstanceId = field(default_factory=lambda: InstanceId(secrets.token_bytes(16)))
    epoch: int = 0
    session: SessionId | None = None
    endpoint: Endpoint | None = None
    link: Link | None = None
    events: list[Event] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)  # why its links did
    relay_key: StaticKey | None = None  # the one it knows, if not the current
    features: tuple[str, ...] = ("rotation",)
    targets: list[socket.socket] = field(default_factory=list)  # far ends, one a stream
    # What it runs in, and what is closed in the end, unless it outlives the relay.
    nursery: trio.Nursery = field(init=False)
    leftovers: list[socket.socket | Link] = field(init=False)

    def __post_init__(self) -> None:
        self.nursery, self.leftovers = self.relay.nursery, self.relay.leftovers

    def again(self) -> Router:
        return Router(self.relay, self.key)

    async def attach(
        self,
        *,
        resume: Resume | None = None,
        epoch: int | None = None,
        token: Token | None = None,
        features: tuple[str, ...] | None = None,
        successor: AgentKey | None = None,
        silent: bool = False,
    ) -> Welcome:
        """A new link. `silent`: nobody reads it, as if the process were stopped."""

        def hello() -> Hello:
            self.epoch = self.epoch + 1 if epoch is None else epoch
            return Hello(
                instance=self.instance,
                epoch=self.epoch,
                software="test",
                features=self.features if features is None else features,
                limits=LIMITS,
                resume=resume,
                token=token,
                successor=successor,
            )

        sock = caller_of(self.relay.port)
        try:
            link, welcome = await initiate(
                sock,
                suite=Suite.CHACHAPOLY,
                static=self.key,
                relay_key=RelayKey((self.relay_key or self.relay.key).public),
                hello=hello,
            )
        except BaseException:
            sock.close()
            raise
        self.leftovers.append(link)
        self.link, self.session = link, welcome.session
        if not welcome.resumed:
            self.events = []  # ids of publications begin anew
            endpoint = Endpoint(new_session(Side.AGENT), pool=BufferPool(), on_event=self._on_event)
            self.endpoint = endpoint
        if not silent:
            await self.carry(welcome.received)
        return welcome

    async def carry(self, received: int = 0) -> None:
        """Run the link, until it ends by itself."""
        endpoint, link = self.endpoint, self.link
        assert endpoint is not None
        assert link is not None
        self.nursery.start_soon(self._carry, endpoint, link, received)
        await until(lambda: endpoint.link is link)

    async def resume(self, **options: Any) -> Welcome:
        return await self.attach(resume=self.where(), **options)

    def where(self) -> Resume:
        assert self.session is not None
        assert self.endpoint is not None
        return Resume(session=self.session, received=self.endpoint.session.received)

    async def _carry(self, endpoint: Endpoint, link: Link, received: int) -> None:
        try:
            await endpoint.carry(link, received)
        except (LinkLost, SessionLost) as exc:
            self.ended.append(str(exc))
        finally:
            link.close()

    async def cut(self) -> None:
        """The link is lost, and the relay has noticed."""
        assert self.endpoint is not None
        self.endpoint.drop_link("cut")
        await until(lambda: not self.relay.agent(self).ownership.attached)

    async def lose(self) -> None:
        """The process is killed."""
        assert self.endpoint is not None
        self.endpoint.lose()
        await quiet()

    def publish(self, port: int, service: str = "ssh") -> int:
        assert self.endpoint is not None
        publication = self.endpoint.session.publish(service, port)
        self.endpoint.flush()
        return publication

    async def serve(self, port: int, service: str = "ssh") -> int:
        """Publish and wait for the confirmation."""
        publication = self.publish(port, service)
        await until(lambda: publication in self.confirmed)
        return publication

    def unpublish(self, publication: int) -> None:
        assert self.endpoint is not None
        self.endpoint.session.unpublish(publication)
        self.endpoint.flush()

    def say_goodbye(self, code: CloseCode) -> None:
        assert self.endpoint is not None
        self.endpoint.session.close_link(code)
        self.endpoint.flush()

    @property
    def confirmed(self) -> list[int]:
        return [
            one.published.publication
            for one in self.events
            if isinstance(one, PublicationConfirmed)
        ]

    @property
    def refused(self) -> list[Refused]:
        return [one.refused for one in self.events if isinstance(one, PublicationRefused)]

    async def visited(self, port: int) -> tuple[socket.socket, socket.socket]:
        """A new visitor on `port` and the target's far end of its stream."""
        count = len(self.targets)
        visitor = caller_of(port)
        self.leftovers.append(visitor)
        await until(lambda: len(self.targets) > count)
        return visitor, self.targets[count]

    def _on_event(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, StreamOpened):
            assert self.endpoint is not None
            at_agent, target = tcp_pair()
            prepare_spliced(at_agent)
            splice = self.endpoint.join(event.stream)
            self.targets.append(target)
            self.leftovers.append(target)
            self.nursery.start_soon(splice.run, at_agent)


STRANGER = "203.0.113.9"
# So that nobody is held who comes for something else.
BEGIN = b"SSH-2.0-"


def come(
    relay: Relay, router: Router, port: int, host: str = STRANGER, *, says: bytes = BEGIN
) -> socket.socket:
    """A visitor from `host`, as far as the relay knows."""
    visitor, accepted = tcp_pair()
    if says:
        visitor.send(says)
    agent = relay.agent(router)
    agent.ports._on_visitor(agent.ports.listeners[port], accepted, (host, 4711))
    return visitor


async def visited_by(
    relay: Relay, router: Router, port: int, host: str = STRANGER
) -> tuple[socket.socket, socket.socket]:
    """Both ends, after the beginning."""
    count = len(router.targets)
    visitor = come(relay, router, port, host)
    await until(lambda: len(router.targets) > count)
    assert await receive_exactly(router.targets[count], len(BEGIN)) == BEGIN
    return visitor, router.targets[count]


async def echoes(visitor: socket.socket, target: socket.socket, what: bytes) -> bool:
    visitor.sendall(what)
    got = b""
    while len(got) < len(what):
        await until(lambda: _readable(target))
        got += target.recv(100)
    return got == what


def _readable(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def denied(router: Router, code: DenialCode, **options: Any) -> LinkDenied:
    with pytest.raises(LinkDenied) as caught:
        await router.attach(**options)
    assert caught.value.code == code
    return caught.value


def is_attached(router: Router) -> bool:
    """As the relay sees it, to this very process."""
    ownership = router.relay.agent(router).ownership
    return ownership.attached and ownership.instance == router.instance


async def serving(relay: Relay) -> tuple[Router, int]:
    """An agent that is attached and serves a port, and that port."""
    port = free_port()
    router = await relay.attached("home", port)
    await router.serve(port)
    return router, port


def failures(relay: Relay, router: Router, port: int, host: str = STRANGER) -> float:
    record = relay.agent(router).lines[port].guard.record(host)
    record.decay(trio.current_time())
    return record.failures
