"""Many at once: streams over one link, and agents on one relay.

How much of everything that takes is for the benchmarks; here it only has to work.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.blocking_sockets import PATTERN, Target, pair, receive, visit
from tests.support.far_end import ECHO, HEAD, FarEnd
from tests.support.many_agents import enrol
from tests.support.ports import LOOPBACK, free_port, wait_until_listening
from tests.support.processes import ProcessUnderTest
from tests.support.programs import Agent, Relay, services
from tests.support.repository import ROOT
from tests.support.ssh import SshServer
from tests.support.waiting import LONG_LIMIT, eventually

STREAMS = 200
AGENTS = 50


def test_many_streams_echo_at_once(echo_port: int) -> None:
    said = [PATTERN[number:][: 2000 + 40 * number] for number in range(STREAMS)]
    with contextlib.ExitStack() as stack:
        visitors = [stack.enter_context(visit(echo_port)) for _ in said]
        for visitor in visitors:
            visitor.sendall(HEAD.pack(ECHO, 0, 0))
        for _ in range(5):
            for visitor, what in zip(visitors, said, strict=True):
                visitor.sendall(what)
            for visitor, what in zip(reversed(visitors), reversed(said), strict=True):
                assert receive(visitor, len(what)) == what


def test_more_streams_than_fit_are_refused_and_the_others_go_on(echo_port: int) -> None:
    most = 256  # what an agent takes by default
    with contextlib.ExitStack() as stack:
        visitors = [stack.enter_context(visit(echo_port)) for _ in range(most)]
        for visitor in visitors:
            visitor.sendall(HEAD.pack(ECHO, 0, 0) + b"hello")
        for visitor in visitors:
            assert receive(visitor, 5) == b"hello"
        with visit(echo_port) as late, pytest.raises(ConnectionResetError):
            late.recv(1)
        for visitor in visitors:
            visitor.sendall(b"again")
        for visitor in visitors:
            assert receive(visitor, 5) == b"again"


@pytest.fixture
def echo_port(
    new_relay: Callable[..., Relay], new_agent: Callable[..., Agent], dropbear: SshServer
) -> Iterator[int]:
    """A public port behind which everything comes back."""
    relay, agent, port = new_relay(), new_agent(), free_port()
    relay.start()
    with FarEnd() as far:
        # Joining waits for what a service says first, and an echo has nothing to say.
        agent.join(relay.invite("home", port), f"ssh={LOOPBACK}:{dropbear.port}@{port}")
        agent.configure(services(("echo", far.port, port)))
        agent.start(port)
        yield port


@pytest.fixture
def targets() -> Iterator[list[Target]]:
    with contextlib.ExitStack() as stack:
        targets = []
        for _ in range(AGENTS):
            targets.append(Target())
            stack.callback(targets[-1].close)
        yield targets


def test_many_agents_on_one_relay(
    new_relay: Callable[..., Relay], targets: list[Target], tmp_path: Path
) -> None:
    relay = new_relay()
    relay.start()
    ports = [free_port() for _ in targets]
    members = [(port, target.port) for port, target in zip(ports, targets, strict=True)]
    file = tmp_path / "fleet.json"
    file.write_text(json.dumps(enrol(relay.state, relay.port, members)))
    argv = [sys.executable, "-m", "tests.support.many_agents", str(file), "0", str(AGENTS)]
    with ProcessUnderTest(argv, environment=os.environ, cwd=ROOT) as agents:
        agents.wait_for_output("^ready$", limit=LONG_LIMIT)
        assert_each_has_its_own(ports, targets)
        # They come back all at once and from one address, as a fleet behind one NAT.
        relay.process.kill()
        relay.start()
        eventually(lambda: attached(relay) == AGENTS, what="all are back", limit=LONG_LIMIT)
        for port in ports:
            wait_until_listening(port)
        assert_each_has_its_own(ports, targets)
        assert agents.running, agents.describe()


def assert_each_has_its_own(ports: list[int], targets: list[Target]) -> None:
    with contextlib.ExitStack() as stack:
        pairs = [
            stack.enter_context(pair(port, target))
            for port, target in zip(ports, targets, strict=True)
        ]
        for number, (visitor, _) in enumerate(pairs):
            visitor.sendall(b"%3d" % number)
        for number, (_, accepted) in enumerate(pairs):
            assert receive(accepted, 3) == b"%3d" % number


def attached(relay: Relay) -> int:
    return sum(1 for agent in relay.agents().values() if agent["status"] == "attached")
