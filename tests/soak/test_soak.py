"""Users, faults and attacks at once for as long as one likes, and nothing is lost or left behind.

    make soak SOAK_MINUTES=30

A relay and three agents, the real processes, with real dropbear. Two agents stay, and nothing of
their users' may be lost, whatever happens to the links; the third is killed, stopped, revoked and
invited anew, and its users may be reset but never served less than all without a reset. Each minute
the work rests and a row is printed: what relay and agent hold must not grow.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.far_end import FarEnd
from tests.support.ports import LOOPBACK, free_port
from tests.support.programs import Agent, Relay, services
from tests.support.soak import counted
from tests.support.soak.gauge import MIB, Gauge, settle
from tests.support.soak.load import Floor, Rounds, Strangers, Typist, Users
from tests.support.soak.wire import Wire
from tests.support.ssh import Dropbear, Login, SshServer
from tests.support.waiting import LONG_LIMIT, eventually

MINUTE: Final = 60.0
STAYING: Final = ("home", "office")
COMING: Final = "van"


class Site:
    """An agent with an SSH server and an echo behind it."""

    def __init__(self, folder: Path, name: str, relay: Relay, wire: Wire, ssh: SshServer) -> None:
        self.name, self._relay, self._wire, self._ssh = name, relay, wire, ssh
        self._folders = (folder / f"{name}{number}" for number in itertools.count())
        self.ssh_port, self.echo_port = free_port(), free_port()
        self._echo = FarEnd()
        self.tasks = folder / f"{name}.tasks"
        self.agent = self.enrol()

    def enrol(self) -> Agent:
        agent = Agent(next(self._folders), counted.command(self.tasks, "relay-agent"))
        invitation = self._relay.invite(
            self.name, self.ssh_port, self.echo_port, hosts=[f"{LOOPBACK}:{self._wire.port}"]
        )
        service = f"ssh={LOOPBACK}:{self._ssh.port}@{self.ssh_port}"
        # What a fault ended says why, and is run again.
        eventually(
            lambda: agent.try_join(invitation, service).returncode == 0,
            what=f"{self.name} joins",
            limit=LONG_LIMIT,
        )
        agent.configure(
            services(
                ("ssh", self._ssh.port, self.ssh_port), ("echo", self._echo.port, self.echo_port)
            )
        )
        agent.start(self.ssh_port, self.echo_port)
        return agent

    def stop(self) -> None:
        self.agent.stop()
        self._echo.stop()


class House:
    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.login = Login(folder / "login")
        ssh = Dropbear(folder / "dropbear", self.login)
        stack.callback(ssh.stop)
        self.relay = Relay(folder / "relay")
        self.tasks = folder / "relay.tasks"
        self.relay.command = counted.command(self.tasks, "relay-server")
        self.relay.start()
        stack.callback(self.relay.stop)
        self.wire = Wire(self.relay.port)
        stack.callback(self.wire.close)
        self.sites = []
        for name in (*STAYING, COMING):
            self.sites.append(Site(folder, name, self.relay, self.wire, ssh))
            stack.callback(self.sites[-1].stop)

    def gauges(self) -> list[Gauge]:
        staying = [site for site in self.sites if site.name in STAYING]
        return [
            Gauge("relay", self.relay, self.tasks),
            *(Gauge(site.name, site.agent, site.tasks) for site in staying),
        ]

    def all_attached(self) -> bool:
        agents = self.relay.agents()
        return all(agents[name]["status"] == "attached" for name in (*STAYING, COMING))


class Trouble:
    """What happens to links and to the third agent, and what the administrator does; in rounds."""

    def __init__(self, house: House, seed: int) -> None:
        self._house = house
        self._random = random.Random(seed)
        self.faults = 0
        self.restarts = 0

    def fault(self) -> None:
        wire, chance = self._house.wire, self._random
        # None keeps an agent away for the 10 s that a visitor waits for it.
        faults: list[Callable[[], None]] = [
            wire.cut,
            wire.swallow,
            lambda: wire.stall(chance.uniform(0.2, 4)),
            lambda: wire.refuse(chance.uniform(0.2, 2)),
        ]
        chance.choice(faults)()
        self.faults += 1
        time.sleep(chance.uniform(1, 5))

    def restart(self) -> None:
        site = self._house.sites[-1]
        how = self._random.choice(["stop", "kill", "revoke"])
        if how == "revoke":
            assert self._house.relay.cli("revoke", site.name).returncode == 0
            site.agent.stop()
            site.agent = site.enrol()
        else:
            site.agent.process.send(signal.SIGTERM if how == "stop" else signal.SIGKILL)
            site.agent.process.wait()
            site.agent.start()
        site.agent.process.wait_for_line("link-up")
        self.restarts += 1
        time.sleep(self._random.uniform(1, 4))

    def administer(self) -> None:
        relay = self._house.relay
        assert set(relay.agents()) >= set(STAYING)
        relay.invite("guest", free_port())
        for command in (["invitations"], ["invitations", "--cancel", "guest"]):
            done = relay.cli(*command)
            assert done.returncode == 0, done.stderr


def told(work: list[Rounds], typists: list[Typist]) -> str:
    """What went wrong so far, a line each."""
    problems = [problem for one in work for problem in one.problems]
    return "\n".join(problems + [typist.problem for typist in typists if typist.problem])


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with contextlib.ExitStack() as stack:
        house = House(tmp_path, stack)
        yield house
    for process in (house.relay.process, *(site.agent.process for site in house.sites)):
        said = process.describe()
        assert "Traceback" not in said, said


def test_nothing_is_lost_and_nothing_grows(
    house: House, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    minutes: float = request.config.getoption("--soak-minutes")
    seed: int = request.config.getoption("--soak-seed") or random.SystemRandom().getrandbits(32)
    floor, users, strangers = Floor(), Users(seed), Strangers(seed + 1)
    trouble = Trouble(house, seed + 2)
    staying, coming = house.sites[:-1], house.sites[-1]

    def rounds(
        name: str, once: Callable[[], None], *, pause: float = 0.0, spared: bool = False
    ) -> Rounds:
        allowed = ConnectionError if spared else None
        return Rounds(floor, name, once, pause=pause, spared=allowed)

    typists = [Typist(floor, site.echo_port) for site in staying]
    work = [
        rounds("copy home", lambda: users.copy(staying[0].echo_port), pause=0.2),
        rounds("copy office", lambda: users.copy(staying[1].echo_port), pause=0.5),
        rounds("copy van", lambda: users.copy(coming.echo_port), pause=0.2, spared=True),
        rounds("ssh", lambda: users.log_in(house.login, staying[0].ssh_port), pause=1.0),
        rounds("comers", lambda: users.come_and_go(staying[0].echo_port), pause=0.1),
        rounds("bots", lambda: strangers.bots(staying[0].ssh_port), pause=0.5),
        *(
            rounds(f"garbage {number}", lambda: strangers.garbage(house.relay.port), pause=0.1)
            for number in range(3)
        ),
        rounds("faults", trouble.fault),
        rounds("restarts", trouble.restart, pause=2.0),
        rounds("administrator", trouble.administer, pause=4.0),
    ]
    gauges = house.gauges()
    period = min(MINUTE, minutes * MINUTE / 2)
    with capsys.disabled():
        print(f"\nsoak of {minutes:g} min, --soak-seed {seed}\n{_head(gauges)}")
        for thread in (*typists, *work):
            thread.start()
        begin = time.monotonic()
        while True:
            floor.going.set()
            floor.over.wait(period)
            floor.rest(work)
            eventually(house.all_attached, what="all agents are back")
            settle(gauges)
            elapsed = time.monotonic() - begin
            print(_row(elapsed, gauges, users, trouble, work), flush=True)
            if elapsed >= minutes * MINUTE and len(gauges[0].readings) > 1:
                break
    floor.over.set()
    floor.going.set()
    for thread in (*work, *typists):
        thread.join(MINUTE)
        assert not thread.is_alive(), f"{thread.name} does not end"
    assert not (problems := told(work, typists)), problems
    grown = [excess for gauge in gauges if (excess := gauge.excess())]
    assert not grown, "\n".join(grown)
    idle = [one.name for one in work if not one.rounds and not one.broken]
    assert not idle, f"nothing was done by {', '.join(idle)}"
    assert all(typist.heard for typist in typists)


_HEAD: Final = " | {:>9} {:>5} {:>6} {:>8} {:>6}".format(
    "copied MB", "ssh", "faults", "restarts", "broken"
)


def _head(gauges: list[Gauge]) -> str:
    return "minutes" + "".join(f" | {gauge.name:>8} MiB  fds tasks" for gauge in gauges) + _HEAD


def _row(
    elapsed: float, gauges: list[Gauge], users: Users, trouble: Trouble, work: list[Rounds]
) -> str:
    row = f"{elapsed / MINUTE:>7.1f}"
    for gauge in gauges:
        held = gauge.readings[-1]
        row += f" | {held.rss / MIB:>12.1f} {held.descriptors:>4} {held.tasks:>5}"
    logins = next(one.rounds for one in work if one.name == "ssh")
    broken = sum(one.broken for one in work)
    row += f" | {users.copied / 1e6:>9.0f} {logins:>5} {trouble.faults:>6}"
    return row + f" {trouble.restarts:>8} {broken:>6}"
