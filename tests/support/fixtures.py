"""Fixtures that several folders of tests import into their conftest.py."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.blocking_sockets import Target
from tests.support.ports import LOOPBACK
from tests.support.programs import Agent, Relay
from tests.support.ssh import Dropbear, Login, OpenSsh, SshServer


@contextlib.contextmanager
def giving_up_after(seconds: float) -> Iterator[None]:
    """Fail a test that hangs, wherever it does, by a signal to this process."""

    def give_up(*_: object) -> None:
        raise AssertionError(f"the test did not end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
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
