"""Bots at the public port cost nobody else the login, with a real dropbear behind it.

Sources are addresses in 127.0.0.0/8; the guard counts all but 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.blocking_sockets import receive, visit, was_reset
from tests.support.house import House
from tests.support.ports import LOOPBACK, free_port
from tests.support.programs import Agent, Relay
from tests.support.ssh import Login, SshServer
from tests.support.waiting import LIMIT, eventually

BOTS = 40
# What stands before an SSH server by default (relay_server/config.py).
UNAUTHENTICATED_PER_SOURCE = 4
UNAUTHENTICATED = 8
# An evicted visitor is gone from the relay before its process at dropbear is.
ON_THEIR_WAY_OUT = 2

ONE_SOURCE = ["127.0.5.5"]
TEN_SOURCES = [f"127.0.5.{number}" for number in range(10, 20)]


@contextlib.contextmanager
def idle(port: int, sources: Sequence[str], server: SshServer) -> Iterator[int]:
    """Visitors who say nothing; tells how many dropbear had at most while they came."""
    most = 0
    with contextlib.ExitStack() as stack:
        for number in range(BOTS):
            stack.enter_context(visit(port, source=sources[number % len(sources)]))
            most = max(most, visitors_of(server))
        yield most


def visitors_of(server: SshServer) -> int:
    """dropbear has a process for each."""
    pid = server.process.pid
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


@pytest.mark.parametrize(
    ("sources", "cap"), [(ONE_SOURCE, UNAUTHENTICATED_PER_SOURCE), (TEN_SOURCES, UNAUTHENTICATED)]
)
def test_idle_visitors_cost_nobody_the_login(
    own_house: House, dropbear: SshServer, login: Login, sources: list[str], cap: int
) -> None:
    port = own_house.dropbear_port
    with login.session(port, "echo up; exec cat", options=["-b", "127.0.6.1"]) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        assert session.stdout.readline() == b"up\n"
        sessions = visitors_of(dropbear)
        with idle(port, sources, dropbear) as most:
            for number in range(5):
                done = login.ssh(port, "echo in", options=["-b", f"127.0.7.{1 + number}"])
                assert (done.stdout, done.returncode) == ("in\n", 0), done.stderr
                assert visitors_of(dropbear) - sessions <= cap + ON_THEIR_WAY_OUT
            assert most - sessions <= cap + ON_THEIR_WAY_OUT
            eventually(lambda: visitors_of(dropbear) - sessions <= cap, what="the cap", limit=LIMIT)
            # Each is counted as its own task ends, a moment after its place is another's.
            eventually(
                lambda: own_house.relay.agents()["home"]["refused"].get("evicted"),
                what="evictions are told",
            )
        session.stdin.write(b"still here\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"still here\n"
        assert session.communicate(timeout=LIMIT) == (b"", b"")
        assert session.returncode == 0
    lines = own_house.relay.process.log
    assert len([line for line in lines if "visitor-evicted" in line]) <= 10


@pytest.mark.parametrize(
    "says", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"]
)
def test_who_is_no_ssh_client_never_reaches_the_ssh_server(
    own_house: House, dropbear: SshServer, says: bytes
) -> None:
    port = own_house.dropbear_port
    with visit(port, source="127.0.5.5") as silent, visit(port, source="127.0.5.6") as visitor:
        visitor.sendall(says)
        assert was_reset(visitor)
        # Who waits for the server hears it all the same.
        assert receive(silent, 8) == b"SSH-2.0-"
    relay = own_house.relay
    assert relay.agents()["home"]["refused"] == {"not_ssh": 1}
    assert re.search(r"\nhome +ssh +1 +not an SSH client\n", relay.cli("agents").stdout)
    relay.process.wait_for_line(r'visitor-refused .*source=127\.0\.5\.6 reason="not an SSH client"')
    came = "\n".join(line for line in relay.process.log if "visitor-in" in line)
    assert "source=127.0.5.5 " in came
    assert "source=127.0.5.6 " not in came


def is_denied(port: int, *, source: str) -> bool:
    try:
        with visit(port, source=source) as visitor:
            return was_reset(visitor)
    except ConnectionResetError:  # it may come before connect(2) has returned
        return True


def test_a_denied_source_gets_not_a_byte_and_others_get_in(
    new_relay: Callable[..., Relay],
    new_agent: Callable[..., Agent],
    dropbear: SshServer,
    login: Login,
) -> None:
    relay, agent, port = new_relay(config='deny = ["127.0.5.0/24"]\n'), new_agent(), free_port()
    relay.start()
    agent.join(relay.invite("home", port), f"ssh={LOOPBACK}:{dropbear.port}@{port}")
    agent.start(port)
    assert is_denied(port, source="127.0.5.5")
    relay.process.wait_for_line(r'visitor-refused .*source=127\.0\.5\.5 reason="the source is den')
    done = login.ssh(port, "echo in", options=["-b", "127.0.6.1"])
    assert (done.stdout, done.returncode) == ("in\n", 0), done.stderr
    assert relay.agents()["home"]["refused"] == {"source_denied": 1}


def test_a_port_is_restricted_while_the_relay_runs(own_house: House, login: Login) -> None:
    relay, port = own_house.relay, own_house.dropbear_port
    with login.session(port, "cat", options=["-b", "127.0.6.1"]) as session:
        done = relay.cli("restrict", "home", "--port", str(port), "--allow", "127.0.7.0/24")
        said = f"visitors to port {port} of home may come from: 127.0.7.0/24\n"
        assert (done.stdout, done.stderr, done.returncode) == ("", said, 0)
        assert is_denied(port, source="127.0.6.1")
        assert login.ssh(port, "echo in", options=["-b", "127.0.7.1"]).stdout == "in\n"
        assert re.search(rf"\nhome +{port} +allow +127\.0\.7\.0/24\n", relay.cli("agents").stdout)
        # Who is in stays in, and the other ports of the agent are as they were.
        assert session.communicate(b"still here\n", timeout=LIMIT)[0] == b"still here\n"
        done = login.ssh(own_house.openssh_port, "echo in", options=["-b", "127.0.6.1"])
        assert done.stdout == "in\n", done.stderr
    relay.cli("restrict", "home", "--lift")
    assert login.ssh(port, "echo in", options=["-b", "127.0.6.1"]).stdout == "in\n"
