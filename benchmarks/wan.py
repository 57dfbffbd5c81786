"""Typing beside bulk over a thin line, and one stream over a long fat one.

    python -m benchmarks --only wan

Both need the network lab, hence root: a router and a VPS in network namespaces, and between them a
path with a rate, a delay and a queue. Each carrier has a lab of its own and they take turns, so
what the machine does meanwhile meets all of them. Every TCP connection has cubic.

**Typing.** A visitor says 64 bytes now and then, which the router echoes, while others load as much
as they get from the router through its uplink. Whoever carries it, an echo waits in the queue of
the line like everything else. So at the same moment a ping (UDP, past the carrier) takes the same
path through the same queue, and what is compared is the time of the echo beyond that of its ping.
A ping that got lost, which happens only while the queue is full, is taken to be like the one before
it. The queue before the line holds either one product of bandwidth and delay or 400 ms.

**Long fat line.** 200 Mbit/s and 150 ms. One copy goes each way in turn, through the carriers and
directly, as one plain TCP connection.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from tests.e2e.harness import (
    LIMIT,
    LOOPBACK,
    ProcessUnderTest,
    program,
    services,
    wait_until_closed,
    wait_until_listening,
)
from tests.lab.lab import (
    BOTH,
    RELAY_NAME,
    RELAY_PORT,
    ROUTER,
    SSH_PORT,
    VPS,
    VPS_TO_LAPTOP,
    Lab,
    Network,
    missing,
)
from tests.lab.peers import VPS_SSH_PORT, VpsSshd

from .carriers import Ssh, cpu_seconds, rss_bytes, tree
from .machine import Others
from .report import Findings, Measurement, Plan, Plot, Scalar, Series, Target, Unable
from .typing_load import End, Way

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


def typing_lines(quick: bool) -> tuple[Line, ...]:
    return (
        Line(
            name="20 Mbit/s, 40 ms",
            rate=20e6,
            down=100e6,
            trip=0.040,
            warm=4.0,
            seconds=6.0 if quick else 16.0,
        ),
        Line(
            name="1 Mbit/s, 100 ms",
            rate=1e6,
            down=8e6,
            trip=0.100,
            pause=0.15,
            warm=6.0,
            seconds=10.0 if quick else 30.0,
        ),
    )


BLOATED: Final = 0.400  # seconds of queue
# What cubic needs to find out how large it is, when its sender always has something to send.
FILLING: Final = 10.0


def fat_line(quick: bool) -> Line:
    return Line(
        name="200 Mbit/s, 150 ms",
        rate=200e6,
        down=200e6,
        trip=0.150,
        # Slow start, the loss at its end, and what cubic needs to recover from that.
        warm=6.0 if quick else 12.0,
        seconds=6.0 if quick else 15.0,
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


# --- Typing --------------------------------------------------------------------------------------


def beyond(carried: Carried) -> list[float]:
    """What each echo took beyond its ping; one that never came took at least until the end."""
    excess = []
    ping = next((trip for trip in carried.pings if trip is not None), 0.0)
    ends = carried.said[-1] if carried.said else 0.0
    for said, echo, own in zip(carried.said, carried.echoes, carried.pings, strict=True):
        ping = ping if own is None else own
        excess.append((ends - said if echo is None else echo) - ping)
    return excess


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def share(carried: Carried, line: Line, way: Way = "up") -> float:
    """Of what the line could carry beside the pings."""
    rate = line.rate if way == "up" else line.down
    room = rate * carried.seconds - 8 * PING * len(carried.said)
    return 8 * sum(carried.copies) / (room * PAYLOAD)


FIGURES: Final[Mapping[str, tuple[str, Callable[[Carried, Line], float]]]] = {
    "echo beyond ping, median": ("ms", lambda one, _: 1e3 * statistics.median(beyond(one))),
    "echo beyond ping, 95 %": ("ms", lambda one, _: 1e3 * percentile(beyond(one), 95)),
    "ping, median": ("ms", lambda one, _: 1e3 * statistics.median(pings(one))),
    "unsent in the socket": ("ms", lambda one, line: 8e3 * one.unsent / line.rate),
    "sent again": ("segments", lambda one, _: one.retransmitted),
    "copies, of the line": ("%", lambda one, line: 100 * share(one, line)),
    "copies, most to least": ("×", lambda one, _: max(one.copies) / max(1, min(one.copies))),
}


def pings(carried: Carried) -> list[float]:
    return [trip for trip in carried.pings if trip is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    line: Line
    copies: int
    queue: int
    queue_name: str

    @property
    def warm(self) -> float:
        """Long enough for a new link of ssh to fill the queue, as its pings show."""
        return self.line.warm if self.queue == self.line.product else FILLING

    @property
    def parameters(self) -> dict[str, Scalar]:
        return {"line": self.line.name, "copies": self.copies, "queue": self.queue_name}

    @property
    def name(self) -> str:
        many = "one copy" if self.copies == 1 else f"{self.copies} copies"
        return f"beside {many}, {self.line.name}, queue of {self.queue_name}"


def conditions(quick: bool) -> list[Condition]:
    made = []
    for line, copies in itertools.product(typing_lines(quick), (1, 8)):
        product = f"{line.trip * 1e3:.0f} ms"
        bloated = f"{BLOATED * 1e3:.0f} ms"
        made += [
            Condition(line=line, copies=copies, queue=line.product, queue_name=product),
            Condition(line=line, copies=copies, queue=line.queue(BLOATED), queue_name=bloated),
        ]
    return made


Rounds: TypeAlias = dict[str, list[Carried]]  # by carrier


def typing(plan: Plan, labs: Mapping[str, Ours | Theirs]) -> Findings:
    measured: list[tuple[Condition, Rounds]] = []
    for condition in conditions(plan.quick):
        for lab in labs.values():
            condition.line.shape(lab, condition.queue)
            # Cubic remembers the queue that a link had before, and fills a larger one late.
            lab.begin_anew()
        rounds: Rounds = {name: [] for name in labs}
        for number in range(rounds_of(plan)):
            for name, lab in labs.items():
                settle(lab, condition.line)
                carried = measure(
                    lab,
                    condition.line,
                    copies=condition.copies,
                    warm=condition.warm,
                    seed=number,
                )
                rounds[name].append(carried)
                tell(f"{name} {condition.name}", carried, condition.line)
        measured.append((condition, rounds))
    return Findings(
        title="Typing beside bulk",
        measurements=tuple(one for what in measured for one in typing_measurements(*what)),
        targets=tuple(one for what in measured for one in typing_targets(*what)),
        plots=tuple(typing_plot(*what) for what in measured),
        notes=(
            "Typing: an echo of 64 bytes, beyond a ping through the same queue at the same moment,"
            " while copies load the uplink; 95 % is the 95th percentile. A line's share is what"
            " arrives of what its packets can carry as payload.",
        ),
    )


def rounds_of(plan: Plan) -> int:
    return 1 if plan.quick else min(plan.rounds, ROUNDS)


def typing_measurements(condition: Condition, rounds: Rounds) -> Iterator[Measurement]:
    for name, (unit, figure) in FIGURES.items():
        for carrier, all_carried in rounds.items():
            yield Measurement(
                name=name,
                carrier=carrier,
                unit=unit,
                values=tuple(figure(one, condition.line) for one in all_carried),
                parameters=condition.parameters,
            )


def typing_targets(condition: Condition, rounds: Rounds) -> Iterator[Target]:
    for words in ("median", "95 %"):
        _, figure = FIGURES[f"echo beyond ping, {words}"]
        # Of one round each, as they were measured one after the other.
        ours, theirs = ([figure(one, condition.line) for one in rounds[c]] for c in (OURS, THEIRS))
        # An echo may be lucky beside its ping; nobody is then so and so many times as slow.
        ratios = [max(0.0, a) / b for a, b in zip(ours, theirs, strict=True) if b > 0]
        yield Target(
            number="4",
            name=f"echo beyond its ping to that of {THEIRS}, {words}, {condition.name}",
            limit=0.2,
            at_most=True,
            measured=statistics.median(ratios) if ratios else None,
            note="; ".join(
                [*([spread(ratios)] if ratios else []), f"{spread(ours)} ms to {spread(theirs)} ms"]
            ),
        )
    shares = [share(one, condition.line) for one in rounds[OURS]]
    yield Target(
        number="4",
        name=f"share of the line that copies get, {condition.name}",
        limit=0.95,
        at_most=False,
        measured=statistics.median(shares),
        unit="",
        note=f"{THEIRS}: {spread([share(one, condition.line) for one in rounds[THEIRS]])}",
    )


def spread(values: Sequence[float]) -> str:
    return "–".join(f"{value:.3g}" for value in sorted({min(values), max(values)}))


def typing_plot(condition: Condition, rounds: Rounds) -> Plot:
    series = []
    for carrier, all_carried in rounds.items():
        echoes = [trip for one in all_carried for trip in one.echoes if trip is not None]
        trips = [trip for one in all_carried for trip in pings(one)]
        series += [
            distribution(carrier, echoes),
            distribution(f"ping beside {carrier}", trips),
        ]
    line = condition.line
    slug = f"{line.rate / 1e6:g}-mbit-{condition.queue_name.replace(' ', '')}"
    if condition.copies == 1:
        slug += "-one-copy"
    return Plot(
        name=f"typing-{slug}",
        title=f"Echo {condition.name}",
        x_label="ms",
        y_label="share of echoes not slower",
        series=tuple(series),
        kind="steps",
        log_x=True,
    )


def distribution(label: str, seconds: Sequence[float]) -> Series:
    """By every hundredth, which is as much as a plot shows."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return Series(
        label=label,
        x=tuple(round(1e3 * cut, 2) for cut in cuts),
        y=tuple(percent / 100 for percent in range(1, 100)),
    )


def tell(what: str, carried: Carried, line: Line) -> None:
    figures = [
        f"{name} {figure(carried, line):.3g} {unit}" for name, (unit, figure) in FIGURES.items()
    ]
    sys.stderr.write(f"{what}: {'; '.join(figures)}\n")


# --- A long fat line -----------------------------------------------------------------------------


# As root, in /etc/sysctl.d; the kernel's own limits are 4 MB to send and 6 or 32 MB to receive.
SYSCTLS: Final = {
    "net.ipv4.tcp_wmem": "4096 16384 33554432",
    "net.ipv4.tcp_rmem": "4096 131072 33554432",
}
# For the product of bandwidth and delay, the queue, and an ack that comes 50 ms later.
FAT_OPTIONS: Final = 'replay = "16MiB"\nstream_window_max = "8MiB"\nsession_window = "16MiB"\n'
FAT_SHARE: Final = 0.8
FAT_MEMORY: Final = 64.0  # MB


def set_sysctls(network: Network, values: Mapping[str, str]) -> None:
    for namespace in (network.laptop, network.vps, network.router):
        with namespace.entered():
            for name, value in values.items():
                sysctl(name).write_text(value)


def sysctl(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def fat(plan: Plan, labs: Mapping[str, Ours | Theirs]) -> Findings:
    line = fat_line(plan.quick)
    ours, theirs = labs[OURS], labs[THEIRS]
    assert isinstance(ours, Ours)
    for lab in labs.values():
        line.shape(lab, line.product)
    defaults = {name: sysctl(name).read_text().strip() for name in SYSCTLS}
    entries: list[tuple[str, Ours | Theirs, bool, str, Mapping[str, str]]] = [
        (PLAIN, theirs, True, "", SYSCTLS),
        (f"{PLAIN}, sysctls as they were", theirs, True, "", defaults),
        (OURS, ours, False, FAT_OPTIONS, SYSCTLS),
        (f"{OURS}, default options", ours, False, "", SYSCTLS),
        (THEIRS, theirs, False, "", SYSCTLS),
    ]
    rounds: dict[tuple[str, Way], list[Carried]] = {}
    for number in range(rounds_of(plan)):
        for name, lab, direct, options, sysctls in entries:
            set_sysctls(lab, sysctls)
            for way in BOTH:
                if isinstance(lab, Ours):
                    # What a link learnt of losses in one direction is not held against the other.
                    lab.begin_anew(options)
                settle(lab, line)
                carried = measure(lab, line, copies=1, way=way, direct=direct, seed=number)
                rounds.setdefault((name, way), []).append(carried)
                figures = [
                    f"{what} {figure(carried, line, way):.3g} {unit}"
                    for what, (unit, figure) in FAT_FIGURES.items()
                ]
                sys.stderr.write(f"{name} {way}: {'; '.join(figures)}\n")
    return Findings(
        title="A long fat line",
        measurements=tuple(fat_measurements(line, rounds)),
        targets=tuple(fat_targets(line, rounds)),
        notes=(
            f"{line.name}: with "
            + ", ".join(f"`{name} = {value}`" for name, value in SYSCTLS.items())
            + f"; as they were: {', '.join(defaults.values())}. {OURS} there has in agent.toml"
            f" {', '.join(FAT_OPTIONS.split(chr(10))[:-1])}. `net.core.rmem_max` and `wmem_max` do"
            " not matter, as nobody sets the buffers himself.",
        ),
    )


def grown(carried: Carried) -> float:
    """Of the relay, in MB, at most."""
    return (carried.relay_rss[1] - carried.relay_rss[0]) / 1e6


FAT_FIGURES: Final[Mapping[str, tuple[str, Callable[[Carried, Line, Way], float]]]] = {
    "one copy, of the line": ("%", lambda one, line, way: 100 * share(one, line, way)),
    "relay's memory more": ("MB", lambda one, line, way: grown(one)),
    "forwarder, of a core": ("%", lambda one, line, way: 100 * one.forwarder_cpu),
}


def fat_measurements(
    line: Line, rounds: Mapping[tuple[str, Way], list[Carried]]
) -> Iterator[Measurement]:
    for what, (unit, figure) in FAT_FIGURES.items():
        for (carrier, way), all_carried in rounds.items():
            if figure is FAT_FIGURES["relay's memory more"][1] and carrier.startswith(PLAIN):
                continue
            yield Measurement(
                name=what,
                carrier=carrier,
                unit=unit,
                values=tuple(figure(one, line, way) for one in all_carried),
                parameters={"line": line.name, "way": way},
            )


def fat_targets(line: Line, rounds: Mapping[tuple[str, Way], list[Carried]]) -> Iterator[Target]:
    for way in BOTH:
        shares = {
            carrier: [share(one, line, way) for one in all_carried]
            for (carrier, its_way), all_carried in rounds.items()
            if its_way == way
        }
        others = [f"{c}: {spread(values)}" for c, values in shares.items() if c != OURS]
        yield Target(
            number="5",
            name=f"share of the line that one copy gets, {line.name}, {way}",
            limit=FAT_SHARE,
            at_most=False,
            measured=statistics.median(shares[OURS]),
            unit="",
            note="; ".join([spread(shares[OURS]), *others]),
        )
        memory = [grown(one) for one in rounds[OURS, way]]
        yield Target(
            number="5",
            name=f"memory the relay takes for it, {way}",
            limit=FAT_MEMORY,
            at_most=True,
            measured=max(memory),
            unit="MB",
            note=spread(memory),
        )


# --- All of it -----------------------------------------------------------------------------------


def run(plan: Plan) -> Findings:
    if reason := missing() or Ssh().missing():
        raise Unable(reason)
    others = Others()
    with contextlib.ExitStack() as undo:
        labs: dict[str, Ours | Theirs] = {}
        for name, kind in ((OURS, Ours), (THEIRS, Theirs)):
            folder = plan.work / kind.__name__.lower()
            folder.mkdir()
            lab = kind(folder)
            undo.enter_context(lab)
            labs[name] = lab
        parts = typing(plan, labs), fat(plan, labs)
    return Findings(
        title="Over a WAN: typing beside bulk, and a long fat line",
        measurements=tuple(one for part in parts for one in part.measurements),
        targets=tuple(one for part in parts for one in part.targets),
        plots=tuple(one for part in parts for one in part.plots),
        notes=tuple(one for part in parts for one in part.notes),
        # All that was started has ended, and so counts as ours.
        others=others.remark([]),
    )
