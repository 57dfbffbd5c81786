"""Two SSH servers for the whole run, and a relay with its agent for each file of tests."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import (
    LOOPBACK,
    Agent,
    Dropbear,
    Login,
    OpenSsh,
    Relay,
    SshServer,
    Target,
    free_port,
    services,
)

# The harness gives up in good time wherever it waits. This is for what a test reads from a pipe
# itself, so that a byte that never comes fails one test and does not hang the run.
TEST_LIMIT = 180.0


@pytest.fixture(autouse=True)
def no_test_hangs() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise AssertionError(f"the test did not end within {TEST_LIMIT:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, TEST_LIMIT)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def login(tmp_path_factory: pytest.TempPathFactory) -> Login:
    return Login(tmp_path_factory.mktemp("login") / "user")


@pytest.fixture(scope="session")
def dropbear(tmp_path_factory: pytest.TempPathFactory, login: Login) -> Iterator[SshServer]:
    server = Dropbear(tmp_path_factory.mktemp("dropbear") / "server", login)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def openssh(tmp_path_factory: pytest.TempPathFactory, login: Login) -> Iterator[SshServer]:
    server = OpenSsh(tmp_path_factory.mktemp("openssh") / "server", login)
    yield server
    server.stop()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """A relay and an agent at work, and the public ports of the agent's three services."""

    relay: Relay
    agent: Agent
    dropbear_port: int
    openssh_port: int
    raw_port: int
    target: Target
    invitation: str


@pytest.fixture(scope="module")
def house(
    tmp_path_factory: pytest.TempPathFactory, dropbear: SshServer, openssh: SshServer
) -> Iterator[House]:
    """For tests that leave it as they found it."""
    yield from _run_house(tmp_path_factory.mktemp("house"), dropbear, openssh)


@pytest.fixture
def own_house(tmp_path: Path, dropbear: SshServer, openssh: SshServer) -> Iterator[House]:
    """For tests that kill, revoke or restart something."""
    yield from _run_house(tmp_path, dropbear, openssh)


def _run_house(folder: Path, dropbear: SshServer, openssh: SshServer) -> Iterator[House]:
    relay, agent, target = Relay(folder / "relay"), Agent(folder / "agent"), Target()
    ports = [free_port() for _ in range(3)]
    try:
        relay.start()
        invitation = relay.invite("home", *ports)
        agent.join(invitation, f"ssh={LOOPBACK}:{dropbear.port}@{ports[0]}")
        # Joining visits each service and waits for what it says; the raw one has nothing to say,
        # so it is left out there.
        agent.configure(
            services(
                ("ssh", dropbear.port, ports[0]),
                ("openssh", openssh.port, ports[1]),
                ("raw", target.port, ports[2]),
            )
        )
        agent.start(*ports)
        # Read as well as written, so that tests can tell what comes later from it.
        for port in ports:
            relay.process.wait_for_line(rf" port-open .*\bport={port}\b")
        yield House(
            relay=relay,
            agent=agent,
            dropbear_port=ports[0],
            openssh_port=ports[1],
            raw_port=ports[2],
            target=target,
            invitation=invitation,
        )
    finally:
        agent.stop()
        relay.stop()
        target.close()
    for side in (relay, agent):
        said = side.process.describe()
        assert "Traceback" not in said, said


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """The public port through which one of the SSH servers is reached."""

    port: int
    server: SshServer


@pytest.fixture(params=["dropbear", "openssh"])
def door(
    request: pytest.FixtureRequest, house: House, dropbear: SshServer, openssh: SshServer
) -> Door:
    if request.param == "dropbear":
        return Door(port=house.dropbear_port, server=dropbear)
    return Door(port=house.openssh_port, server=openssh)


@pytest.fixture
def new_relay(tmp_path: Path) -> Iterator[Callable[..., Relay]]:
    """Make relays, not yet started, that end with the test."""
    relays: list[Relay] = []

    def make(name: str = "new-relay", *, bind: str | None = LOOPBACK, config: str = "") -> Relay:
        relays.append(Relay(tmp_path / name, bind=bind, config=config))
        return relays[-1]

    yield make
    for relay in relays:
        relay.stop()


@pytest.fixture
def new_agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Make agents, not yet started, that end with the test."""
    agents: list[Agent] = []

    def make(name: str = "new-agent") -> Agent:
        agents.append(Agent(tmp_path / name))
        return agents[-1]

    yield make
    for agent in agents:
        agent.stop()


@pytest.fixture
def target() -> Iterator[Target]:
    target = Target()
    yield target
    target.close()
