"""A relay in the test's own process: the real handshake and session, everything else scripted."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import trio

from protocol.errors import DenialCode, LinkLost, RemoteProtocolError, SessionLost
from protocol.process.address import HostPort
from protocol.session.events import Event, PeerClosing, PublicationWithdrawn, PublishRequested
from protocol.session.replay import ReplayCap
from protocol.session.session import Session, SessionOptions
from protocol.session.side import Side
from protocol.transport.endpoint import Endpoint
from protocol.transport.handshake import Arrival, respond
from protocol.transport.sockets import prepare_spliced
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import Publish
from protocol.wire.hello import Denial, Hello, Welcome
from protocol.wire.identifiers import RelayKey, SessionId
from protocol.wire.noise import StaticKey
from relay_agent.identity.relay_identity import RelayIdentity
from tests.support.ends import LIMITS
from tests.support.sockets import tcp_pair

LIMIT = 3600.0  # on a clock that jumps; a test that needs it has failed
VISITOR = ("203.0.113.9", 4711)

Greeting = Callable[[socket.socket], Awaitable[None]]


class ScriptedRelay:
    """Greets each caller by the next of `greetings`, or else as a relay does."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.key = StaticKey.generate()
        self.keys = [self.key]  # the first is the current one
        self.shown: list[RelayKey] = []  # which of them each agent knew
        self.greetings: list[Greeting] = []
        self.callers = 0
        self.times: list[float] = []  # when each came
        self.hellos: list[Hello] = []
        self.published: list[Publish] = []
        self.withdrawn: list[int] = []
        self.goodbyes: list[object] = []
        self.sessions: dict[SessionId, Endpoint] = {}
        self.endpoint: Endpoint | None = None
        self.ports: tuple[int, ...] = (11111, 11112)
        self.answer: Callable[[Endpoint, Publish], None] = self.confirm
        self._nursery = nursery
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.setblocking(False)
        self.port = self._server.getsockname()[1]

    @property
    def address(self) -> RelayIdentity:
        return RelayIdentity(
            hosts=[HostPort("127.0.0.1", self.port)], key=RelayKey(self.key.public)
        )

    @property
    def now(self) -> Endpoint:
        """The session that is carried."""
        assert self.endpoint is not None
        return self.endpoint

    async def serve(self) -> None:
        with self._server:
            while True:
                try:
                    sock, _ = self._server.accept()
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self._server.fileno())
                    continue
                self.callers += 1
                self.times.append(trio.current_time())
                greet = self.greetings.pop(0) if self.greetings else self.greet
                self._nursery.start_soon(self._close_after, greet, sock)

    async def _close_after(self, greet: Greeting, sock: socket.socket) -> None:
        with sock, suppress(LinkLost, RemoteProtocolError, EOFError, OSError):
            await greet(sock)

    async def shake(self, sock: socket.socket) -> Arrival:
        arrival = await respond(sock, statics=self.keys, verified=lambda: None)
        self.shown.append(arrival.relay_key)
        self.hellos.append(arrival.hello)
        return arrival

    def welcome(self, session: SessionId, *, resumed: bool, received: int = 0) -> Welcome:
        newest = RelayKey(self.keys[0].public)
        return Welcome(
            session=session,
            resumed=resumed,
            received=received,
            limits=LIMITS,
            name="home",
            ports=self.ports,
            features=(),
            software="test",
            successor=newest if self.shown and self.shown[-1] != newest else None,
        )

    async def greet(self, sock: socket.socket) -> None:
        """Resume the session asked for if it is here, else begin one."""
        arrival = await self.shake(sock)
        resume = arrival.hello.resume
        endpoint = self.sessions.get(resume.session) if resume else None
        if endpoint is None or resume is None:
            session, received = self._new_id(), 0
            endpoint = self.sessions[session] = self._new_endpoint()
            welcome = self.welcome(session, resumed=False)
        else:
            endpoint.drop_link("another came")
            received = resume.received
            welcome = self.welcome(resume.session, resumed=True, received=endpoint.session.received)
        await arrival.welcome(welcome)
        self.endpoint = endpoint
        try:
            await endpoint.carry(arrival.link, received)
        except (LinkLost, SessionLost):
            pass
        finally:
            arrival.link.close()

    def denying(self, code: int, *, retry_after: float = 0.0) -> Greeting:
        async def greet(sock: socket.socket) -> None:
            arrival = await self.shake(sock)
            reason = f"denied with {code}"
            await arrival.deny(
                replace(
                    Denial(code=DenialCode.BUSY, reason=reason, retry_after=retry_after), code=code
                )
            )

        return greet

    async def freeze(self, sock: socket.socket) -> None:
        """Welcome to a new session, and then not a byte more: a process that was stopped."""
        await self.welcome_and_be_silent(sock)
        await trio.sleep_forever()

    async def welcome_and_be_silent(self, sock: socket.socket) -> Arrival:
        arrival = await self.shake(sock)
        session = self._new_id()
        self.sessions[session] = self._new_endpoint()
        await arrival.welcome(self.welcome(session, resumed=False))
        return arrival

    def _new_id(self) -> SessionId:
        return SessionId(len(self.hellos).to_bytes(16, "big"))

    def resuming(self, session: SessionId) -> Greeting:
        """Claims to resume `session`, whatever was asked for."""

        async def greet(sock: socket.socket) -> None:
            arrival = await self.shake(sock)
            await arrival.welcome(self.welcome(session, resumed=True))
            await trio.sleep_forever()

        return greet

    def _new_endpoint(self) -> Endpoint:
        options = SessionOptions(
            limits=LIMITS,
            window_limit=256 * 1024,
            replay_limit=1024 * 1024,
            replay_cap=ReplayCap(2**30),
        )
        session = Session(side=Side.RELAY, options=options, peer=self.hellos[-1].limits)
        endpoint = Endpoint(
            session, pool=BufferPool(), on_event=lambda event: self._on_event(endpoint, event)
        )
        return endpoint

    def _on_event(self, endpoint: Endpoint, event: Event) -> None:
        if isinstance(event, PublishRequested):
            self.published.append(event.publish)
            self.answer(endpoint, event.publish)
        elif isinstance(event, PublicationWithdrawn):
            self.withdrawn.append(event.publication)
        elif isinstance(event, PeerClosing):
            self.goodbyes.append(event.code)

    def confirm(self, endpoint: Endpoint, publish: Publish) -> None:
        endpoint.session.published(publish.publication, publish.port)

    def refusing(self, code: int) -> Callable[[Endpoint, Publish], None]:
        def answer(endpoint: Endpoint, publish: Publish) -> None:
            endpoint.session.refused(publish.publication, code, f"refused with {code}")

        return answer

    def cut(self) -> None:
        self.now.drop_link("cut")

    def open(self, publication: int = 1, source: tuple[str, int] = VISITOR) -> int:
        stream = self.now.session.open(publication, source)
        assert stream is not None
        return stream

    def visit(self, publication: int = 1) -> socket.socket:
        """A visitor's end of a stream for `publication`."""
        visitor, accepted = tcp_pair()
        prepare_spliced(accepted)
        splice = self.now.join(self.open(publication))
        self._nursery.start_soon(splice.run, accepted)
        self.now.flush()
        return visitor


class Target:
    """A listening socket that the agent may dial."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.address = HostPort("127.0.0.1", self.sock.getsockname()[1])

    async def accept(self) -> tuple[socket.socket, str]:
        while True:
            try:
                sock, (host, _) = self.sock.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock.fileno())
                continue
            sock.setblocking(False)
            return sock, host

    def close(self) -> None:
        self.sock.close()
