"""Bots at the public port lock nobody out, and cut nobody off.

At full length the promises hold to the letter. In short there are fewer bots, not to be a load on
the tests beside, and a login may take as long as a person is patient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay_server.guard.rules import FOR_SSH
from tests.support.blocking_sockets import visit
from tests.support.lab.bots import IDENTIFICATION
from tests.support.lab.network import LAPTOP, SSH_PORT, Lab, Network
from tests.support.lab.peers import PeerLab
from tests.support.lab.peers import missing as missing_peers
from tests.support.lab.siege import (
    OWNER,
    PATIENCE,
    Bots,
    DefaultDropbear,
    DefaultOpenSsh,
    Logins,
    add_addresses,
    addresses,
    besieged,
    quiet,
)
from tests.support.lab.traffic import traffic
from tests.support.waiting import eventually

# A login by key takes 0.3 s here, at OpenSSH twice that.
PROMISED = 2.0

MANY = Bots(sources=addresses(20), idle=400, slow=200, stalled=200, guessing=20)
FEWER = Bots(sources=addresses(20), idle=100, slow=50, stalled=50, guessing=5)
# Those of them that one address has, which is also that of somebody's laptop.
NEIGHBOURS = Bots(sources=[LAPTOP], idle=20, slow=10, stalled=10, guessing=1)

Server = type[DefaultDropbear] | type[DefaultOpenSsh]
Record = Callable[[str, object], None]


@pytest.fixture(params=[DefaultDropbear, DefaultOpenSsh], ids=["dropbear", "openssh"])
def server(request: pytest.FixtureRequest) -> Server:
    chosen: Server = request.param
    return chosen


@pytest.fixture
def lab(enrolled: Path, tmp_path: Path, server: Server) -> Iterator[Lab]:
    with Lab(tmp_path, enrolled=enrolled, server=server) as lab:
        yield lab
        said = lab.describe()
    print(said)  # seen when the test fails
    assert "Traceback" not in said


@pytest.fixture
def limit(pytestconfig: pytest.Config) -> float:
    return PROMISED if pytestconfig.getoption("--lab-full") else PATIENCE


@pytest.fixture
def crowd(pytestconfig: pytest.Config) -> Bots:
    return MANY if pytestconfig.getoption("--lab-full") else FEWER


def lay_siege(lab: Network, those: Bots, *, source: str, seconds: float) -> tuple[Logins, str]:
    """Logins from `source` beside them, and what the bots counted."""
    add_addresses(lab, [OWNER, *those.sources])
    logins = Logins()
    with besieged(lab, those) as said:
        logins.go_on(lab, source, seconds=seconds)
    print(logins, said)
    came = sum(int(count) for what, count in said.items() if what.endswith("came"))
    return logins, f"{came} came, {said.get('passwords tried', 0):.0f} passwords tried"


def row(what: str, by: str, server: Server, logins: Logins, bots: str, cut: str) -> dict[str, str]:
    return {
        "bots": what,
        "by": by,
        "server": server.__name__.removeprefix("Default"),
        "logins": str(logins.many),
        "succeeded": f"{logins.within(PATIENCE):.1%}",
        f"in {PROMISED:g} s": f"{logins.within(PROMISED):.1%}",
        "median s": f"{logins.median:.2f}",
        "worst s": f"{logins.worst:.2f}",
        "sessions": cut,
        "what bots did": bots,
    }


@contextlib.contextmanager
def sessions(lab: Network) -> Iterator[Callable[[], None]]:
    """One in which something is always said, and one in which nothing is; tells that both last."""
    with traffic(lab, copies=False) as talk, quiet(lab) as silent:

        def finish() -> None:
            talk.finish()
            silent.finish()

        yield finish


def refused(lab: Lab) -> str:
    by_reason: dict[str, int] = lab.relay.agents()["home"]["refused"]
    return ", ".join(f"{count} {reason}" for reason, count in sorted(by_reason.items()))


@pytest.mark.lengths(short=[12], full=[300])
def test_bots_of_20_addresses_delay_no_login(
    lab: Lab,
    server: Server,
    length: float,
    limit: float,
    crowd: Bots,
    record_property: Record,
) -> None:
    with sessions(lab) as finish:
        logins, bots = lay_siege(lab, crowd, source=OWNER, seconds=length)
        did = f"{bots}; {refused(lab)}"
        finish()
    record_property(
        "bots", row(f"{crowd.many}, 20 addresses", "ssh-relay", server, logins, did, "kept")
    )
    assert not logins.failures
    assert logins.within(limit) == 1.0, sorted(logins.times)[-5:]


@pytest.mark.lengths(short=[12], full=[120])
def test_bots_at_the_owners_own_address(
    lab: Lab, server: Server, length: float, record_property: Record
) -> None:
    """As behind a carrier's NAT."""
    with sessions(lab) as finish:
        logins, bots = lay_siege(lab, NEIGHBOURS, source=LAPTOP, seconds=length)
        did = f"{bots}; {refused(lab)}"
        finish()
    record_property(
        "bots",
        row(f"{NEIGHBOURS.many}, the same address", "ssh-relay", server, logins, did, "kept"),
    )
    assert logins.within(PATIENCE) >= 0.9, logins.failures


@pytest.mark.lengths(short=[12], full=[60])
def test_200_one_shots_a_minute_are_no_attack(lab: Lab, length: float) -> None:
    add_addresses(lab, [OWNER])
    logins = Logins()
    logins.go_on(lab, OWNER, seconds=length, pause=60 / 200)
    assert not logins.failures
    assert lab.relay.agents()["home"]["refused"] == {}
    # Whom the guard did not see log in, it takes for one who failed.
    lines = [line for line in lab.relay.process.log if f"source={OWNER}" in line]
    ends = [line for line in lines if "visitor-out" in line]
    assert len(ends) == logins.many
    assert all("login=seen" in line for line in ends)


def test_addresses_of_one_64_are_one_source(lab: Lab) -> None:
    hosts = [f"2001:db8:0:1::{100 + number}" for number in range(20)]
    lab.vps.ip("addr add 2001:db8::1/128 dev lan0 nodad", "route add 2001:db8::/32 dev lan0")
    lab.laptop.ip(*(f"addr add {host}/128 dev lan0 nodad" for host in hosts))
    lab.laptop.ip("route add 2001:db8::1 dev lan0")
    with contextlib.ExitStack() as stack, lab.laptop.entered():
        for host in hosts:
            visitor = stack.enter_context(visit(SSH_PORT, "2001:db8::1", source=host))
            visitor.sendall(IDENTIFICATION)
        eventually(lambda: streams(lab), what="the first of them are at the router")
        assert streams(lab) <= FOR_SSH.unauthenticated_per_source
        logins = Logins()
        logins.one(lab, LAPTOP)
    assert not logins.failures


def streams(lab: Lab) -> int:
    many: int = lab.relay.agents()["home"]["streams"]
    return many


@pytest.mark.peers
@pytest.mark.lengths(short=[12], full=[60])
def test_what_bots_do_to_ssh_r(
    possible: None, tmp_path: Path, server: Server, length: float, record_property: Record
) -> None:
    if reason := missing_peers():
        pytest.fail(reason, pytrace=False)
    with PeerLab(tmp_path, tuned=False, server=server) as lab:
        logins, bots = lay_siege(lab, MANY, source=OWNER, seconds=length)
    record_property("bots", row(f"{MANY.many}, 20 addresses", "ssh -R", server, logins, bots, "-"))
