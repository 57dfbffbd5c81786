from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from protocol.errors import DenialCode, RefusalCode
from protocol.process.address import HostPort
from protocol.process.cli.command import CommandFailed
from protocol.process.state import StateFolder
from protocol.transport.endpoint import Endpoint
from protocol.wire.frame import CloseCode, Publish
from protocol.wire.hello import Denial
from protocol.wire.invitation import Invitation
from protocol.wire.noise import StaticKey
from relay_agent import join as module
from relay_agent.config import AgentConfig
from relay_agent.identity.enrolment import load_enrolment, load_key
from relay_agent.join import join
from relay_agent.services.service import Service
from relay_agent.services.ssh_discovery import NoSshServer
from tests.support.ports import free_port
from tests.support.scripted_relay import ScriptedRelay
from tests.support.trio_waiting import until

TOKEN = bytes(range(16))
BANNER = "SSH-2.0-dropbear"


class Server:
    """A local server that shows a banner; also the relay's public port, when it is one."""

    def __init__(self, banner: bytes = BANNER.encode() + b"\r\n") -> None:
        self.banner = banner
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.port = self.sock.getsockname()[1]
        self.address = HostPort("127.0.0.1", self.port)
        self.heard: list[bytes] = []

    async def serve(self, on_caller: Callable[[socket.socket], None] | None = None) -> None:
        with self.sock:
            while True:
                await trio.lowlevel.wait_readable(self.sock.fileno())
                caller, _ = self.sock.accept()
                caller.setblocking(False)
                if on_caller is not None:
                    on_caller(caller)
                    continue
                with caller:
                    if self.banner:
                        caller.send(self.banner)
                    caller.shutdown(socket.SHUT_WR)
                    with trio.move_on_after(5):
                        await trio.lowlevel.wait_readable(caller.fileno())
                        with suppress(OSError):
                            self.heard.append(caller.recv(100))


@dataclass
class House:
    relay: ScriptedRelay
    nursery: trio.Nursery
    ssh: Server
    state: StateFolder
    public: Server  # what the first public port of the relay is

    @property
    def invitation(self) -> Invitation:
        return Invitation(
            hosts=(("127.0.0.1", self.relay.port),),
            relay_key=self.relay.key.public,
            token=TOKEN,
        )

    @property
    def service(self) -> Service:
        return Service("ssh", self.ssh.address)

    async def join(self, *services: Service, invitation: Invitation | None = None) -> None:
        await join(
            invitation or self.invitation,
            services or [self.service],
            config=AgentConfig(),
            state=self.state,
        )

    async def fails(self, *services: Service, invitation: Invitation | None = None) -> str:
        """The one line that joining ends with."""
        try:
            await self.join(*services, invitation=invitation)
        except* CommandFailed as failed:
            found: BaseException = failed
        while isinstance(found, BaseExceptionGroup):
            (found,) = found.exceptions
        text = str(found)
        assert "\n" not in text
        return text

    async def works(self) -> None:
        """Join once more, by the same invitation."""
        await self.join()
        assert load_enrolment(self.state).services == (
            Service("ssh", self.ssh.address, self.public.port),
        )


@asynccontextmanager
async def a_house(path: Path, *, public: bool = True) -> AsyncIterator[House]:
    async with trio.open_nursery() as nursery:
        relay = ScriptedRelay(nursery)
        nursery.start_soon(relay.serve)
        ssh, port = Server(), Server()
        state = StateFolder(path / "state")
        state.ensure()
        house = House(relay, nursery, ssh, state, port)
        nursery.start_soon(ssh.serve)

        def on_visitor(caller: socket.socket) -> None:
            splice = relay.now.join(relay.open(relay.published[-1].publication))
            nursery.start_soon(splice.run, caller)
            relay.now.flush()

        if public:
            nursery.start_soon(port.serve, on_visitor)
        relay.ports = (port.port, 11112)
        yield house
        nursery.cancel_scope.cancel()


async def test_it_enrols_proves_the_whole_way_and_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay_agent.join.how_to_start", lambda program: f"{program} start")
    async with a_house(tmp_path) as house:
        await house.join()
        enrolment = load_enrolment(house.state)
        assert enrolment.name == "home"
        assert enrolment.relay.key == house.relay.key.public
        assert enrolment.services == (Service("ssh", house.ssh.address, house.public.port),)
        assert house.relay.hellos[0].token == TOKEN
        await until(lambda: house.relay.goodbyes)
        assert house.relay.goodbyes == [CloseCode.GONE]
        # Through the public port as an SSH client, whom the relay does not hold.
        await until(lambda: b"SSH-2.0-ssh_relay_join\r\n" in house.ssh.heard)
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"enrolled as home at 127.0.0.1:{house.relay.port}",
        f"ssh: port {house.public.port} answers with {BANNER}",
        "saved; now run: relay-agent start",
    ]
    assert err == ""
    house.public.sock.close()


async def test_the_key_is_on_the_disk_before_the_token_is_shown(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        keys = []

        async def greet(sock: socket.socket) -> None:
            keys.append((house.state.path / "joining.key").exists())
            arrival = await house.relay.shake(sock)
            keys.append(arrival.agent_key)
            await arrival.deny(Denial(code=DenialCode.BUSY, reason="later"))

        house.relay.greetings = [greet, greet]
        await house.fails()
        await house.fails()
        assert keys[0] is True
        # A lost answer burns nothing: the same key shows the same token.
        assert keys[1] == keys[3]
        await house.works()
        assert load_key(house.state).public == keys[1]
    house.public.sock.close()


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (DenialCode.TOKEN, "relay-server invite"),
        (DenialCode.DUPLICATE, "stop the relay-agent"),
        (DenialCode.VERSION, "the same version"),
        (DenialCode.BUSY, "the relay refuses: denied with 6"),
        (99, "the relay refuses: denied with 99"),
    ],
)
async def test_a_denial_is_one_line_with_what_to_do(tmp_path: Path, code: int, hint: str) -> None:
    async with a_house(tmp_path) as house:
        house.relay.greetings.append(house.relay.denying(code))
        line = await house.fails()
        assert line.startswith("the relay refuses: denied with")
        assert hint in line
        assert not (house.state.path / "enrolment.toml").exists()
        await house.works()
    house.public.sock.close()


async def test_an_unreachable_relay_is_named(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        port = free_port()
        nowhere = Invitation(
            hosts=(("127.0.0.1", port),), relay_key=house.relay.key.public, token=TOKEN
        )
        line = await house.fails(invitation=nowhere)
        assert line == f"cannot reach the relay: 127.0.0.1:{port}: Connection refused"
        await house.works()
    house.public.sock.close()


async def test_another_relays_key_is_no_relay_of_the_invitation(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        other = Invitation(
            hosts=(("127.0.0.1", house.relay.port),),
            relay_key=StaticKey.generate().public,
            token=TOKEN,
        )
        line = await house.fails(invitation=other)
        assert "not the relay whose key we hold" in line
        await house.works()
    house.public.sock.close()


@pytest.mark.parametrize(
    ("port", "count", "wanted"), [(9, 1, "wants port 9"), (None, 3, "wants a port")]
)
async def test_a_port_that_is_not_granted_is_told_with_those_that_are(
    tmp_path: Path, port: int | None, count: int, wanted: str
) -> None:
    async with a_house(tmp_path) as house:
        services = [Service(f"s{n}", house.ssh.address, port) for n in range(count)]
        line = await house.fails(*services)
        assert wanted in line
        assert f"grants {house.public.port}, 11112" in line
        house.relay.ports = ()
        assert "grants none" in await house.fails()
        house.relay.ports = (house.public.port,)
        await house.works()
    house.public.sock.close()


async def test_services_take_the_ports_left_in_order(tmp_path: Path) -> None:
    services = [
        Service("a", HostPort("::1", 1)),
        Service("b", HostPort("::1", 2), 11111),
        Service("c", HostPort("::1", 3)),
    ]
    async with a_house(tmp_path) as house:
        house.relay.ports = (11111, 11112, 11113)
        welcome = house.relay.welcome(bytes(16), resumed=False)
    assert [each.port for each in module._with_ports(services, welcome)] == [11112, 11111, 11113]
    house.public.sock.close()


@pytest.mark.parametrize("code", [RefusalCode.PORT_BUSY, RefusalCode.NOT_GRANTED])
async def test_a_refused_publication_ends_it(tmp_path: Path, code: int) -> None:
    async with a_house(tmp_path) as house:
        house.relay.answer = house.relay.refusing(code)
        line = await house.fails()
        assert line == f"the relay refuses to publish ssh: refused with {code.value}"
        # The relay need not keep anything for our return.
        await until(lambda: house.relay.goodbyes)
        house.relay.answer = house.relay.confirm
        await house.works()
    house.public.sock.close()


async def test_a_relay_that_answers_over_and_over_is_heard_once(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:

        def answer(endpoint: Endpoint, publish: Publish) -> None:
            for _ in range(50):
                endpoint.session.published(publish.publication, publish.port)
                endpoint.session.refused(publish.publication, RefusalCode.LIMIT, "no")
                endpoint.session.published(publish.publication, publish.port)

        house.relay.answer = answer
        assert await house.fails() == "the relay refuses to publish ssh: no"
    house.public.sock.close()


async def test_a_relay_that_never_answers_is_given_up(
    tmp_path: Path, jumping_clock: trio.testing.MockClock
) -> None:
    async with a_house(tmp_path) as house:
        house.relay.answer = lambda endpoint, publish: None
        began = trio.current_time()
        assert "did not open the ports in time" in await house.fails()
        assert trio.current_time() - began == pytest.approx(module.PUBLISH_TIMEOUT, abs=0.1)
        house.relay.answer = house.relay.confirm
        await house.works()
    house.public.sock.close()


async def test_a_link_lost_in_the_middle_is_told(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        house.relay.answer = lambda endpoint, publish: endpoint.drop_link("cut")
        line = await house.fails()
        assert line.startswith("the link to the relay was lost: ")
        assert line.endswith("; run join again")
        house.relay.answer = house.relay.confirm
        await house.works()
    house.public.sock.close()


async def test_a_link_lost_while_the_public_port_is_visited_is_told(tmp_path: Path) -> None:
    async with a_house(tmp_path, public=False) as house:

        def on_visitor(caller: socket.socket) -> None:
            house.relay.cut()
            caller.close()

        house.nursery.start_soon(house.public.serve, on_visitor)
        line = await house.fails()
        assert line.startswith("the link to the relay was lost: ")
        assert not (house.state.path / "enrolment.toml").exists()


async def test_without_an_ssh_server_nothing_is_asked_of_the_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none() -> HostPort:
        raise NoSshServer("no SSH server found on this machine (tried 127.0.0.1:22: …)")

    monkeypatch.setattr(module, "find_ssh_server", none)
    async with a_house(tmp_path) as house:
        with pytest.raises(CommandFailed, match="no SSH server found"):
            await join(house.invitation, [], config=AgentConfig(), state=house.state)
        assert house.relay.callers == 0
    house.public.sock.close()


async def test_the_ssh_server_found_goes_on_the_first_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_house(tmp_path) as house:

        async def found() -> HostPort:
            return house.ssh.address

        monkeypatch.setattr(module, "find_ssh_server", found)
        await join(house.invitation, [], config=AgentConfig(), state=house.state)
        assert load_enrolment(house.state).services[0].port == house.public.port
        assert f"found the local SSH server at {house.ssh.address}" in capsys.readouterr().out
    house.public.sock.close()


async def test_a_named_target_that_is_no_ssh_server_is_told(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        house.ssh.banner = b"220 ftp\r\n"
        line = await house.fails()
        assert line.startswith("no SSH server answers at the target of ssh: ")
        assert not (house.state.path / "enrolment.toml").exists()
        house.ssh.banner = BANNER.encode() + b"\r\n"
        await house.works()
    house.public.sock.close()


async def test_a_public_port_that_is_blocked_is_saved_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_house(tmp_path, public=False) as house:
        house.public.sock.close()
        line = await house.fails()
        assert line.startswith("saved, but not proved: ssh could not be visited from here (")
        assert "Connection refused" in line
        assert "firewall" in line
        assert load_enrolment(house.state).services[0].port == house.public.port
        assert "saved; now run" not in capsys.readouterr().out


@pytest.mark.parametrize("opened", [True, False])
async def test_a_target_that_does_not_speak_first_is_proved_by_its_port(
    tmp_path: Path,
    jumping_clock: trio.testing.MockClock,
    capsys: pytest.CaptureFixture[str],
    opened: bool,
) -> None:
    async with a_house(tmp_path, public=opened) as house:
        if not opened:
            house.public.sock.close()
        house.ssh.banner = b""
        web = Service("web", house.ssh.address)
        if opened:
            await house.join(web)
            assert f"web: port {house.public.port} is open" in capsys.readouterr().out
        else:
            assert "web could not be visited from here" in await house.fails(web)
        assert load_enrolment(house.state).services == (
            Service("web", house.ssh.address, house.public.port),
        )
    house.public.sock.close()


async def test_a_target_that_is_not_there_is_told(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        nowhere = HostPort("127.0.0.1", free_port())
        line = await house.fails(Service("web", nowhere))
        assert line.startswith("nothing answers at the target of web: ")
        await house.works()
    house.public.sock.close()
