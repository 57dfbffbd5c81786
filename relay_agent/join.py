"""`relay-agent join`: enrol, publish, and prove the whole way before saying that it works.

    1. find the local SSH server (or take the services given)
    2. save this agent's key, then show the token: if the answer is lost, the token is still good
    3. publish at the relay, and wait until it has confirmed
    4. visit each public port from outside and see the target answer through relay and agent
    5. save

Every step can be repeated: the token stays good for the key that has shown it first.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from protocol.errors import DenialCode, LinkDenied, LinkLost, SessionLost
from protocol.process.address import HostPort
from protocol.process.cli.command import CommandFailed, say
from protocol.process.service_manager import how_to_start
from protocol.session.replay import ReplayCap
from protocol.session.session import Session
from protocol.session.side import Side
from protocol.transport.link import Link
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import CloseCode
from protocol.wire.hello import ROTATION, Hello, Welcome
from protocol.wire.identifiers import ID_SIZE, InstanceId, Token
from protocol.wire.invitation import Invitation
from protocol.wire.noise import StaticKey
from relay_agent import PROGRAM
from relay_agent.identity.enrolment import Enrolment, load_or_make_key, save_enrolment
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link.attach import SOFTWARE, attach
from relay_agent.net.dial import DialFailed, dial
from relay_agent.services.publisher import Publisher
from relay_agent.services.service import Service
from relay_agent.services.ssh_discovery import (
    BANNER_TIMEOUT,
    NoBanner,
    NoSshServer,
    find_ssh_server,
    read_banner,
)

if TYPE_CHECKING:
    from protocol.process.state import StateFolder
    from relay_agent.config import AgentConfig

# A flight to the relay and the opening of a port there.
PUBLISH_TIMEOUT: Final = 10.0
# TCP to the relay, OPEN to the agent, TCP to the target, and the banner back.
VISIT_TIMEOUT: Final = 10.0
# What an SSH client says first (RFC 4253, section 4.2): the relay may hold a silent visitor.
_GREETING: Final = b"SSH-2.0-ssh_relay_join\r\n"


async def join(
    invitation: Invitation,
    services: Sequence[Service],
    *,
    config: AgentConfig,
    state: StateFolder,
) -> None:
    """Enrol this agent with `invitation`, and save that for `run`.

    With no `services`, the SSH server of this machine is the only one. Raises CommandFailed,
    perhaps in a group, with one line that says what to do.
    """
    services = list(services) or [await _ssh_service()]
    key = load_or_make_key(state, invitation.token)
    hosts = [HostPort(host, port) for host, port in invitation.hosts]
    relay = RelayIdentity(hosts=hosts, key=invitation.relay_key)
    link, welcome = await _enrol(relay, key, invitation.token, config)
    # The relay may have rotated its key since the invitation was made; `run` begins with that one.
    relay = RelayIdentity(hosts=hosts, key=invitation.relay_key, successor=welcome.successor)
    try:
        services = _with_ports(services, welcome)
        host, port = link.peername
        say(f"enrolled as {welcome.name} at {HostPort(host, port)}\n")
        unproved = await _prove(link, welcome, services, config)
    finally:
        link.close()
    save_enrolment(state, Enrolment(name=welcome.name, relay=relay, services=tuple(services)))
    if unproved:
        raise CommandFailed(
            f"saved, but not proved: {unproved}; open the port in the firewall of the relay's "
            "machine, or ignore this if only the network here blocks it"
        )
    say(f"saved; now run: {how_to_start(PROGRAM)}\n")


async def _ssh_service() -> Service:
    try:
        target = await find_ssh_server()
    except NoSshServer as exc:
        raise CommandFailed(str(exc)) from exc
    say(f"found the local SSH server at {target}\n")
    return Service("ssh", target)


async def _enrol(
    relay: RelayIdentity, key: StaticKey, token: Token, config: AgentConfig
) -> tuple[Link, Welcome]:
    hello = Hello(
        instance=InstanceId(secrets.token_bytes(ID_SIZE)),
        epoch=1,
        software=SOFTWARE,
        features=(ROTATION,),
        limits=config.limits(),
        token=token,
    )
    try:
        return await attach(relay, static=key, hello=lambda: hello)
    except LinkDenied as exc:
        hint = _HINTS.get(exc.code)
        raise CommandFailed(f"the relay refuses: {exc}{f'; {hint}' if hint else ''}") from exc
    except LinkLost as exc:
        raise CommandFailed(f"cannot reach the relay: {exc}") from exc


_HINTS: Final[dict[int, str]] = {
    DenialCode.TOKEN: "make a new one there with: relay-server invite",
    DenialCode.DUPLICATE: "stop the relay-agent that runs with this key first",
    DenialCode.VERSION: "install the same version of ssh-relay on both sides",
}


def _with_ports(services: Sequence[Service], welcome: Welcome) -> list[Service]:
    """Give the services without a port the granted ports, in order. Raises CommandFailed."""
    taken = {service.port for service in services}
    free = iter([port for port in welcome.ports if port not in taken])
    placed = []
    for service in services:
        port = service.port or next(free, None)
        if port not in welcome.ports:
            granted = ", ".join(map(str, welcome.ports)) or "none"
            wanted = f"port {port}" if port else "a port"
            raise CommandFailed(
                f"service {service.name} wants {wanted}, but the invitation grants {granted}"
            )
        placed.append(replace(service, port=port))
    return placed


async def _prove(
    link: Link, welcome: Welcome, services: Sequence[Service], config: AgentConfig
) -> str:
    """Publish and visit every service. Returns what could not be visited from here, "" for nothing.

    Raises CommandFailed for what would not work from anywhere else either.
    """
    pool = BufferPool()
    session = Session(
        side=Side.AGENT,
        options=config.session_options(ReplayCap(config.replay), pool),
        peer=welcome.limits,
    )
    host, _ = link.peername
    answers = _Answers(services)
    async with trio.open_nursery() as nursery:
        serving = Publisher(
            session,
            services,
            max_streams=config.max_streams,
            pool=pool,
            nursery=nursery,
            outcome=answers.take,
        )
        nursery.start_soon(_carry, serving, link, welcome)
        try:
            await answers.wait()
            unproved = [await _visit(host, service) for service in services]
        finally:
            # Also after a failure: the relay would otherwise keep the ports open for a return.
            session.close_link(CloseCode.GONE)
            serving.endpoint.flush()
        nursery.cancel_scope.cancel()
    return "; ".join(filter(None, unproved))


async def _carry(serving: Publisher, link: Link, welcome: Welcome) -> None:
    try:
        await serving.endpoint.carry(link, welcome.received)
    except (LinkLost, SessionLost) as exc:
        raise CommandFailed(f"the link to the relay was lost: {exc}; run join again") from exc


class _Answers:
    """The relay's answers to the publications."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._waiting = {service.name for service in services}
        self._refusal = ""
        self._settled = trio.Event()

    def take(self, service: Service, refusal: str | None) -> None:
        self._waiting.discard(service.name)
        if refusal is not None:
            self._refusal = f"the relay refuses to publish {service.name}: {refusal}"
        if refusal is not None or not self._waiting:
            self._settled.set()

    async def wait(self) -> None:
        """Wait until all services are published. Raises CommandFailed if one is not."""
        with trio.move_on_after(PUBLISH_TIMEOUT):
            await self._settled.wait()
        if self._refusal:
            raise CommandFailed(self._refusal)
        if self._waiting:
            raise CommandFailed("the relay did not open the ports in time; run join again")


async def _visit(host: str, service: Service) -> str:
    """Connect to the public port as a visitor would. Returns what went wrong, "" for nothing."""
    port = service.port or 0
    try:
        await read_banner(service.target.host, service.target.port, _in(BANNER_TIMEOUT))
    except NoBanner as exc:
        if service.name == "ssh":
            raise CommandFailed(f"no SSH server answers at the target of ssh: {exc}") from exc
        return await _visit_silent(host, service, port)
    try:
        banner = await read_banner(host, port, _in(VISIT_TIMEOUT), greeting=_GREETING)
    except NoBanner as exc:
        return f"{service.name} could not be visited from here ({exc})"
    say(f"{service.name}: port {port} answers with {banner}\n")
    return ""


async def _visit_silent(host: str, service: Service, port: int) -> str:
    """For a target that does not speak first: all that can be seen is that both ends answer."""
    try:
        (await dial([service.target], deadline=_in(BANNER_TIMEOUT))).close()
    except DialFailed as exc:
        raise CommandFailed(f"nothing answers at the target of {service.name}: {exc}") from exc
    try:
        (await dial([HostPort(host, port)], deadline=_in(VISIT_TIMEOUT))).close()
    except DialFailed as exc:
        return f"{service.name} could not be visited from here ({exc})"
    say(f"{service.name}: port {port} is open\n")
    return ""


def _in(seconds: float) -> float:
    return trio.current_time() + seconds
