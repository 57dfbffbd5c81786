"""The relay as a service of systemd: what it says, and what waits for it while it is away.

The manager here is a small one of our own (tests/manager.py): a real one needs a booted system.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.blocking_sockets import receive, visit
from tests.support.ports import LOOPBACK, free_port, wait_until_closed
from tests.support.programs import Agent, Relay
from tests.support.service_manager import Manager
from tests.support.ssh import SshServer
from tests.support.waiting import eventually


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(str(tmp_path / "notify")) as manager:
        yield manager


def publish(relay: Relay, agent: Agent, server: SshServer, port: int) -> None:
    """Both started, and `server` behind `port`."""
    relay.start_service()
    agent.join(relay.invite("home", port), f"ssh={LOOPBACK}:{server.port}@{port}")
    agent.start(port)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_who_comes_while_the_relay_is_away_waits_and_is_served(
    end: signal.Signals,
    manager: Manager,
    dropbear: SshServer,
    new_relay: Callable[..., Relay],
    new_agent: Callable[..., Agent],
) -> None:
    relay, agent, port = new_relay(), new_agent(), free_port()
    relay.manager = manager
    publish(relay, agent, dropbear, port)
    eventually(
        lambda: f"listen-{port}-{LOOPBACK}" in manager.names(), what="the public port is stored"
    )
    relay.process.send(end)
    relay.process.wait()
    with visit(port) as visitor:
        relay.start_service()
        assert receive(visitor, 8) == b"SSH-2.0-"
    agent.stop()


def test_a_port_that_is_given_up_is_given_up_in_the_store_too(
    manager: Manager,
    dropbear: SshServer,
    new_relay: Callable[..., Relay],
    new_agent: Callable[..., Agent],
) -> None:
    relay, agent, port = new_relay(), new_agent(), free_port()
    relay.manager = manager
    publish(relay, agent, dropbear, port)
    assert relay.cli("revoke", "home").returncode == 0
    eventually(
        lambda: manager.names() == [f"listen-{relay.port}-{LOOPBACK}"],
        what="only the port for agents is stored",
    )
    wait_until_closed(port)


def test_the_manager_is_told_how_it_is(manager: Manager, new_relay: Callable[..., Relay]) -> None:
    relay = new_relay()
    relay.manager = manager
    relay.start()
    said: list[str] = []

    def hears(line: str) -> bool:
        said.extend(manager.obey())
        return line in said

    eventually(lambda: hears("READY=1"), what="readiness")
    assert hears("STATUS=0 agents attached, 0 away, 0 ports open, 0 visitors")
    relay.process.send(signal.SIGTERM)
    eventually(lambda: hears("STOPPING=1"), what="the end")
    assert relay.process.wait() == 0
