"""The lab in which a WAN is measured: its lines, its carriers, and one measurement."""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.support.lab.network import (
    RELAY_NAME,
    RELAY_PORT,
    ROUTER,
    SSH_PORT,
    VPS,
    VPS_TO_LAPTOP,
    Lab,
    Network,
)
from tests.support.lab.peers import VPS_SSH_PORT, VpsSshd
from tests.support.lab.typing_load import End, Way
from tests.support.ports import LOOPBACK, wait_until_closed, wait_until_listening
from tests.support.processes import ProcessUnderTest, program
from tests.support.programs import services
from tests.support.waiting import LIMIT

from .carriers import cpu_seconds, rss_bytes, tree
from .report import Notebook, Plan, Scalar

FAR_PORT: Final = 4000
OURS: Final = "ssh-relay"
THEIRS: Final = "ssh -R"
PLAIN: Final = "plain TCP"

# Of a packet of the lab's 1,500 bytes, what TCP with timestamps carries: no carrier can have more.
PAYLOAD: Final = 1448 / 1500
# A ping on the line: 64 bytes in UDP and IP.
PING: Final = 92
# Three already tell whether a figure can be repeated, and each is minutes long here.
ROUNDS: Final = 3


# --- Paths ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    name: str
    rate: float  # bits a second, from the router
    down: float  # and to it
    trip: float  # round trip in seconds, half of it each way
    # Between keystrokes: the probes are to take no more than about a hundredth of the line.
    pause: float = 0.05
    # Until the copies have filled every buffer there is.
    warm: float
    seconds: float

    @property
    def product(self) -> int:
        """Of bandwidth and delay, in bytes."""
        return int(self.rate * self.trip / 8)

    def queue(self, seconds: float) -> int:
        return int(self.rate * seconds / 8)

    def shape(self, network: Network, queue: int) -> None:
        half = self.trip / 2
        network.wan.shape("up", rate=self.rate, delay=half, queue=queue)
        # Never the bottleneck of the typing: only acks and keystrokes go there.
        network.wan.shape(
            "down", rate=self.down, delay=half, queue=max(queue, int(self.down * self.trip / 8))
        )


# --- Labs ----------------------------------------------------------------------------------------


class Ours(Lab):
    """Relay and agent, whose service is the far end of the load instead of an SSH server."""

    def _build_way(self, undo: contextlib.ExitStack) -> None:
        super()._build_way(undo)  # joined with an SSH server, which `join` wants to see
        self.far, self.near = start_ends(self, undo)
        self.begin_anew("")

    def begin_anew(self, agent_options: str = "") -> None:
        """Other processes, the agent's with these lines of agent.toml."""
        self.agent.stop()
        self.relay.stop()
        # Under another name than an SSH server's: nine visitors of one source who send at once are
        # not what the guard is for.
        self.agent.configure(agent_options + services(("load", FAR_PORT, SSH_PORT)))
        since = time.monotonic()
        self.start_relay()
        self.start_agent()
        deadline = since + LIMIT
        while self.journal.first("service-up", since=since, who="agent") is None:
            assert time.monotonic() < deadline, self.describe()
            time.sleep(0.05)

    def relay_pids(self) -> list[int]:
        return tree(self.relay.process.pid)

    def link(self) -> str:
        return f"dport = :{RELAY_PORT}"


class Theirs(Network):
    """sshd on the VPS, and `ssh -R` on the router; both as they come."""

    def _build_way(self, undo: contextlib.ExitStack) -> None:
        self.far, self.near = start_ends(self, undo)
        with self.vps.entered():
            self.sshd = VpsSshd(self.folder / "sshd", self.login, tuned=False)
        undo.callback(self.sshd.stop)
        self._start_ssh()
        undo.callback(lambda: self.ssh.stop())

    def _start_ssh(self) -> None:
        argv = [program("ip"), "netns", "exec", self.router.name, program("ssh"), "-N", "-T"]
        argv += [*self.login.options, "-oExitOnForwardFailure=yes"]
        argv += ["-R", f"0.0.0.0:{SSH_PORT}:{LOOPBACK}:{FAR_PORT}"]
        argv += ["-p", str(VPS_SSH_PORT), RELAY_NAME]
        self.ssh = ProcessUnderTest(argv, environment=self.login.environment)
        self.journal.watch("ssh", self.ssh)

    def begin_anew(self) -> None:
        """Another ssh, once sshd has let go of the port."""
        self.ssh.stop()
        with self.vps.entered():
            wait_until_closed(SSH_PORT)
        self._start_ssh()
        with self.vps.entered():
            wait_until_listening(SSH_PORT)

    def relay_pids(self) -> list[int]:
        return tree(self.sshd.process.pid)

    def link(self) -> str:
        return f"dport = :{VPS_SSH_PORT}"


def start_ends(network: Network, undo: contextlib.ExitStack) -> tuple[End, End]:
    far = End(network.router, "far", str(FAR_PORT))
    undo.callback(far.stop)
    names = network.vps.name, network.laptop.name
    near = End(network.vps, "near", *names, ROUTER, str(FAR_PORT))
    undo.callback(near.stop)
    return far, near


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """One measurement as `typing_load` made it, and what was seen elsewhere meanwhile."""

    said: list[float]
    echoes: list[float | None]
    pings: list[float | None]
    seconds: float
    copies: list[int]
    # Of the router's socket towards the relay: bytes it has taken and not yet sent, and segments
    # that it sent again.
    unsent: float
    retransmitted: int
    relay_rss: tuple[int, int]  # before, and at most
    forwarder_cpu: float  # of one core


def measure(
    lab: Ours | Theirs,
    line: Line,
    *,
    copies: int,
    way: Way = "up",
    direct: bool = False,
    warm: float | None = None,
    seconds: float | None = None,
    patience: float = 20.0,
    seed: int = 0,
) -> Carried:
    with watching(lab, f"sport = :{FAR_PORT} and dst {VPS}" if direct else lab.link()) as seen:
        answer = lab.near.command(
            via="vps" if direct else "laptop",
            host=ROUTER if direct else VPS_TO_LAPTOP,
            port=FAR_PORT if direct else SSH_PORT,
            copies=copies,
            way=way,
            warm=line.warm if warm is None else warm,
            seconds=line.seconds if seconds is None else seconds,
            pause=line.pause,
            patience=patience,
            seed=seed,
        )
    return Carried(
        **answer,
        unsent=statistics.median(seen.unsent or [0]),
        retransmitted=max(seen.retransmitted or [0]) - min(seen.retransmitted or [0]),
        relay_rss=(seen.rss[0], max(seen.rss)),
        forwarder_cpu=seen.forwarder_cpu,
    )


def settle(lab: Ours | Theirs, line: Line) -> None:
    """Wait until nothing of what went before is on its way any more."""
    deadline = time.monotonic() + 2 * LIMIT
    while True:
        idle = measure(lab, line, copies=0, warm=0.0, seconds=4 * line.pause, patience=5.0)
        trips = [trip for trip in idle.echoes if trip is not None]
        if trips and statistics.median(trips) < 1.5 * line.trip:
            return
        assert time.monotonic() < deadline, f"echoes still take {trips}\n{lab.describe()}"


# --- Watching ------------------------------------------------------------------------------------

_GLANCE: Final = 0.2


@dataclass(slots=True)
class Seen:
    unsent: list[int] = field(default_factory=list)
    retransmitted: list[int] = field(default_factory=list)  # since the socket was opened
    rss: list[int] = field(default_factory=list)
    forwarder_cpu: float = 0.0


@contextlib.contextmanager
def watching(lab: Ours | Theirs, link: str) -> Iterator[Seen]:
    """The router's sending socket, the relay's memory and the forwarder's work meanwhile."""
    seen = Seen()
    stopping = threading.Event()
    pids = lab.relay_pids()

    def look() -> None:
        with lab.router.entered():
            while True:
                seen.rss.append(sum(rss_bytes(pid) for pid in pids))
                look_at_socket(seen, link)
                if stopping.wait(_GLANCE):
                    return

    began, used = time.monotonic(), cpu_seconds(lab.wan.pid)
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        stopping.set()
        watcher.join()
    seen.forwarder_cpu = (cpu_seconds(lab.wan.pid) - used) / (time.monotonic() - began)


def look_at_socket(seen: Seen, link: str) -> None:
    """At the fullest, of those that match."""
    argv = [program("ss"), "-tinHO", "state", "established", link]
    said = subprocess.run(argv, check=False, capture_output=True, text=True).stdout
    found = [read_socket(line) for line in said.splitlines()]
    if not found:
        return
    unsent, retransmitted = max(found)
    seen.unsent.append(unsent)
    seen.retransmitted.append(retransmitted)


def read_socket(line: str) -> tuple[int, int]:
    """Bytes unsent, and segments sent again."""
    return _number(r"\bnotsent:(\d+)", line), _number(r"\bretrans:\d+/(\d+)", line)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match.group(1)) if match else 0


# --- Figures -------------------------------------------------------------------------------------


def share(carried: Carried, line: Line, way: Way = "up") -> float:
    """Of what the line could carry beside the pings."""
    rate = line.rate if way == "up" else line.down
    room = rate * carried.seconds - 8 * PING * len(carried.said)
    return 8 * sum(carried.copies) / (room * PAYLOAD)


def spread(values: Sequence[float]) -> str:
    return "–".join(f"{value:.3g}" for value in sorted({min(values), max(values)}))


def rounds_of(plan: Plan) -> int:
    return 1 if plan.quick else min(plan.rounds, ROUNDS)


# By name: the unit, and how the figure is got.
Figures = Mapping[str, tuple[str, Callable[[Carried, Line, Way], float]]]


def note(
    book: Notebook,
    figures: Figures,
    carrier: str,
    carried: Carried,
    line: Line,
    way: Way = "up",
    /,
    **by: Scalar,
) -> None:
    """Take down the figures of one measurement, and tell them to who waits."""
    said = []
    for name, (unit, figure) in figures.items():
        value = figure(carried, line, way)
        book.note(name, carrier, value, unit, **by)
        said.append(f"{name} {value:.3g} {unit}")
    sys.stderr.write(f"{carrier}, {', '.join(map(str, by.values()))}: {'; '.join(said)}\n")
