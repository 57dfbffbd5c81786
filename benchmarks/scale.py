"""Targets 6 to 9: many streams, many visitors, many agents, a small agent; and how cost grows.

    many_visitors ── relay ── agent ── far end        streams, visitors, bytes
                     relay ── many_agents             agents

Memory is what the resident set of a process grew by, over the number of what was added; CPU is what
the kernel counted for the processes of a carrier. Streams and agents of one size are those of the
size before and more beside them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from tests.support import programs
from tests.support.far_end import FarEnd
from tests.support.lab import namespace
from tests.support.many_agents import enrol
from tests.support.ports import LOOPBACK
from tests.support.processes import ProcessUnderTest, plain_environment
from tests.support.repository import ROOT

from .carriers import AES_GCM, Carrier, Relay, Ssh, cpu_seconds, rss_bytes, usage
from .ends import WAYS, command, transfer
from .machine import Others, cubic_loopback
from .many_visitors import Visits
from .report import Findings, Notebook, Plan, Plot, Scalar, Series, Target, Unable, figure

OURS: Final = Relay.name
THEIRS: Final = Ssh(AES_GCM).name
BARE: Final = "bare imports"

# What an echoing visitor says at once, a screenful; and what one in bulk does, as programs do that
# copy files.
ECHO_SIZE: Final = 1 << 10
BULK_SIZE: Final = 64 << 10
PIECE: Final = 256 << 10
# Visitors a second. A little more than these come, since the last ones take their time as well.
VISIT_RATE: Final = 200.0
OFFERED: Final = f"{VISIT_RATE * 1.05:g} a second"
SILENT: Final = "echoing, had no echo"
FLAT_OUT: Final = "as many as get through"
# Above an agent's longest silence, 20 s, so that each is heard of while they are idle.
LEAST_IDLE: Final = 22.0
# For many that come one after the other, on a machine that does other things.
LONG: Final = 180.0
# By how much a unit may cost more among eight times as many. What grows with n log n would cost 1.4
# times as much; with n², eight times.
LINEAR: Final = 1.25

# The least that anybody starts with who builds this on trio, cryptography and msgpack.
BARE_PROGRAM: Final = """
import trio, msgpack
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
print("ready", flush=True)
trio.run(trio.sleep_forever)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    streams: tuple[int, ...] = (125, 250, 500, 1000)
    agents: tuple[int, ...] = (250, 500, 1000, 2000)
    megabytes: tuple[int, ...] = (250, 500, 1000, 2000)
    rounds: int = 3
    starts: int = 5
    # After the last of many has come, until nothing is left to do for any of them.
    settle_seconds: float = 1.0
    echo_seconds: float = 5.0
    # Longer: with a thousand streams each has only a few turns a second.
    bulk_seconds: float = 15.0
    visit_seconds: float = 20.0
    idle_seconds: float = 60.0


TRIAL: Final = Sizes(
    streams=(2, 4),
    agents=(2, 4),
    megabytes=(1, 2),
    rounds=1,
    starts=1,
    settle_seconds=0.05,
    echo_seconds=0.1,
    bulk_seconds=0.2,
    visit_seconds=0.2,
    idle_seconds=0.1,
)


def run(plan: Plan) -> Findings:
    if plan.trial:
        return measure(plan.work, TRIAL)
    if not plan.quick:
        return measure(plan.work, Sizes(rounds=min(3, plan.rounds), starts=plan.rounds))
    # What shows that cost is linear are the two ends; those between them make the plots.
    quick = Sizes(
        streams=(125, 1000),
        agents=(250, 2000),
        megabytes=(60, 500),
        rounds=1,
        starts=plan.rounds,
        echo_seconds=2.0,
        bulk_seconds=6.0,
        visit_seconds=5.0,
        idle_seconds=LEAST_IDLE * 3 / 2,
    )
    return measure(plan.work, quick)


def measure(work: Path, sizes: Sizes) -> Findings:
    raise_limit(sizes)
    others = Others()
    with cubic_loopback() as congestion:
        bench = Bench(work, sizes)
        bench.starts()
        bench.streams()
        bench.visitors()
        bench.bytes()
    bench.agents()
    bench.notes.append(
        f"Congestion control {congestion} for everybody. KB and MB are 1,000 and 1,000,000 bytes."
    )
    return Findings(
        title="Many streams, visitors and agents",
        measurements=bench.book.measurements(),
        targets=tuple(bench.targets),
        plots=tuple(bench.plots),
        notes=tuple(bench.notes),
        # All that was started has ended, and so counts as ours.
        others=others.remark([]),
    )


def raise_limit(sizes: Sizes) -> None:
    """Of descriptors, for all that is started from here. Raises Unable."""
    # An agent is a link and a listening socket of each family; a stream is a socket on each side.
    needed = 256 + max(3 * sizes.agents[-1], 2 * sizes.streams[-1])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, needed), max(most, needed)))
    except (OSError, ValueError):  # only root may go beyond
        raise Unable(f"{needed} descriptors are needed and {most} allowed (ulimit -Hn)") from None


class Ours(Relay):
    """Has started when the agent has, and not when it joined: ports are open from then on."""

    def start(self, folder: Path, targets: Sequence[int]) -> None:
        super().start(folder, targets)
        assert self.agent is not None
        self.agent.process.wait_for_line(" service-up ")


@dataclass(slots=True)
class Bench:
    work: Path
    sizes: Sizes
    book: Notebook = field(default_factory=Notebook)
    targets: list[Target] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _paths: int = 0

    # --- A small agent

    def starts(self) -> None:
        carrier = Ours()
        with FarEnd() as far, carrier.running(self._path(), [far.port]):
            assert carrier.agent is not None
            carrier.agent.stop()
            home = self._path()
            home.mkdir()
            for number in range(self.sizes.starts + 1):
                argv = [sys.executable, "-c", BARE_PROGRAM]
                with ProcessUnderTest(argv, environment=plain_environment(home)) as bare:
                    bare.wait_for_output("^ready$")
                    self._started(BARE, bare, counts=number > 0)
                with carrier.agent.start() as agent:
                    agent.wait_for_line(" link-up ")
                    self._started(OURS, agent, counts=number > 0)
        self._target(
            "8", "memory of an idle agent above the bare imports", 5.0, "MB", self._above()
        )
        self._target(
            "8", "from start to connected", 0.6, "s", self.book.find("from start to ready", OURS)
        )

    def _started(self, name: str, process: ProcessUnderTest, *, counts: bool) -> None:
        """Take what a process that got ready just now has taken; the first of all warms caches."""
        seconds = time.monotonic() - process.started_at
        self._settle()
        if counts:
            self.book.note("from start to ready", name, seconds, "s")
            self.book.note("memory when idle", name, rss_bytes(process.pid) / 1e6, "MB")

    def _above(self) -> list[float]:
        ours, bare = (self.book.find("memory when idle", name) for name in (OURS, BARE))
        return [one - other for one, other in zip(ours, bare, strict=True)]

    # --- Many streams

    def streams(self) -> None:
        for _ in range(self.sizes.rounds):
            for carrier in self._carriers():
                with FarEnd() as far, carrier.running(self._path(), [far.port]):
                    self._idle_streams(carrier)
                    for count in self.sizes.streams:
                        self._echoing(carrier, count)
                    self._bulk(carrier)
        most = self.sizes.streams[-1]
        find = self._of_ours
        fair = f"most ÷ least of {most:,} streams"
        self._target("6", f"{fair}, echoing", 2.0, "×", find("most ÷ least", streams=most))
        self._target(
            "6", f"of {most:,} streams, {SILENT}", 0.0, "", [max(find(SILENT, streams=most))]
        )
        self._target("6", f"{fair}, in bulk", 2.0, "×", find("in bulk, most ÷ least", streams=most))
        memory = "memory of the relay for a stream"
        self._target("6", f"{memory}, idle", 40.0, "KB", find(memory, streams=most))
        self._linear(memory, "streams", self.sizes.streams)
        self._linear("CPU of both sides for an echo", "streams", self.sizes.streams)
        self._plot_memory(
            "memory-by-streams",
            "streams",
            self.sizes.streams,
            {
                "relay": (memory, OURS),
                "agent": ("memory of the agent for a stream", OURS),
                f"{THEIRS}, relay's side": (memory, THEIRS),
            },
        )

    def _carriers(self) -> list[Carrier]:
        # By default a router's agent takes 256.
        most = max(256, 2 * self.sizes.streams[-1])
        ours = Ours(agent_options=f"max_streams = {most}\n")
        theirs = Ssh(AES_GCM)
        return [ours] if theirs.missing() else [ours, theirs]

    def _idle_streams(self, carrier: Carrier) -> None:
        """Of processes that have carried nothing yet, so that all memory they use shows."""
        sides = {"relay": carrier.relay_pids(), "agent": carrier.agent_pids()}
        self._settle()
        before = {side: usage(pids).rss for side, pids in sides.items()}
        with contextlib.ExitStack() as stack:
            for present, count in pairwise((0, *self.sizes.streams)):
                idle = stack.enter_context(visitors(carrier, "idle", count - present))
                idle.wait_for_output("^ready$", limit=LONG)
                self._settle()
                for side, pids in sides.items():
                    each = (usage(pids).rss - before[side]) / count / 1e3
                    name = f"memory of the {side} for a stream"
                    self.book.note(name, carrier.name, each, "KB", streams=count)

    def _echoing(self, carrier: Carrier, count: int) -> None:
        seconds = self.sizes.echo_seconds
        received, spent = self._talk(carrier, "echo", count, ECHO_SIZE, seconds)
        echoes = sum(received) / ECHO_SIZE
        rate, each = echoes / seconds, spent / echoes * 1e6
        note = self.book.note
        note("echoes", carrier.name, rate, "a second", streams=count)
        note("CPU of both sides for an echo", carrier.name, each, "µs", streams=count)
        note("most ÷ least", carrier.name, spread(received), "×", streams=count)
        # One that ends or breaks off ends the benchmark.
        note(SILENT, carrier.name, received.count(0), "streams", streams=count)

    def _bulk(self, carrier: Carrier) -> None:
        count, seconds = self.sizes.streams[-1], self.sizes.bulk_seconds
        received, spent = self._talk(carrier, "bulk", count, BULK_SIZE, seconds)
        carried = 2 * sum(received)  # there and back
        note = self.book.note
        note("in bulk, both ways", carrier.name, carried / seconds / 1e6, "MB/s", streams=count)
        if carried:  # a carrier may not get a byte back to anybody in that time
            each = spent / carried * 1e9
            note("in bulk, CPU of both sides", carrier.name, each, "s/GB", streams=count)
        note("in bulk, most ÷ least", carrier.name, spread(received), "×", streams=count)
        note("in bulk, had nothing", carrier.name, received.count(0), "streams", streams=count)

    def _talk(
        self, carrier: Carrier, what: str, count: int, size: int, seconds: float
    ) -> tuple[list[int], float]:
        """What came back to each of `count` visitors, and the carrier's CPU seconds meanwhile."""
        with visitors(carrier, what, count, size, seconds) as talking:
            talking.wait_for_output("^ready$", limit=LONG)
            before = usage(carrier.pids()).cpu
            received: list[int] = json.loads(talking.wait_for_output(r"^\[.*").group())
            return received, usage(carrier.pids()).cpu - before

    # --- Many visitors

    def visitors(self) -> None:
        with FarEnd() as far, contextlib.ExitStack() as stack:
            carriers = self._carriers()
            for carrier in carriers:
                stack.enter_context(carrier.running(self._path(), [far.port]))
            for _ in range(max(1, self.sizes.rounds - 1)):
                for carrier in carriers:
                    self._visit(carrier, OFFERED, self.sizes.visit_seconds)
                for carrier in carriers:
                    self._visit(carrier, FLAT_OUT, self.sizes.visit_seconds / 4)
        find = self._of_ours
        sustained = f"new visitors a second, for {self.sizes.visit_seconds:g} s"
        self._target(
            "6", sustained, VISIT_RATE, "/s", find("visitors", come=OFFERED), at_most=False
        )
        failed = sum(sum(find(FAILED, come=come)) for come in (OFFERED, FLAT_OUT))
        self._target("6", "visitors without an echo", 0.0, "", [failed])

    def _visit(self, carrier: Carrier, come: str, seconds: float) -> None:
        rate = 0.0 if come == FLAT_OUT else float(come.split()[0])
        before = usage(carrier.pids()).cpu
        with visitors(carrier, "visit", rate, seconds) as visiting:
            visits: Visits = json.loads(visiting.wait_for_output(r"^\{.*", limit=LONG).group())
        spent = usage(carrier.pids()).cpu - before
        echoes, failed = sorted(visits["echoes"]), visits["failed"]
        note = self.book.note
        note(FAILED, carrier.name, sum(failed.values()), "", come=come)
        if failed:
            self.notes.append(f"{carrier.name}, {come}: {FAILED}: {failed}.")
        if echoes:
            middle, late = statistics.median(echoes), echoes[int(len(echoes) * 0.99)]
            note("visitors", carrier.name, len(echoes) / visits["elapsed"], "/s", come=come)
            note("coming to echo, p50", carrier.name, middle * 1e3, "ms", come=come)
            note("coming to echo, p99", carrier.name, late * 1e3, "ms", come=come)
            note("CPU of both sides", carrier.name, spent / len(echoes) * 1e6, "µs", come=come)

    # --- Many bytes

    def bytes(self) -> None:
        carrier = Ours()
        with FarEnd() as far, carrier.running(self._path(), [far.port]):
            for number in range(self.sizes.rounds + 1):
                for size in self.sizes.megabytes if number else self.sizes.megabytes[:1]:
                    for way in WAYS:
                        before = usage(carrier.pids()).cpu
                        transfer(carrier.ports[0], way, size * 10**6, piece=PIECE)
                        each = (usage(carrier.pids()).cpu - before) / size * 1e3
                        if number:
                            self.book.note(f"CPU of both sides {way}", OURS, each, "s/GB", MB=size)
        for way in WAYS:
            self._linear(f"CPU of both sides {way}", "MB", self.sizes.megabytes)

    # --- Many agents

    def agents(self) -> None:
        with on_all_addresses() as bind, FarEnd() as far, contextlib.ExitStack() as stack:
            relay = programs.Relay(self._path(), bind=bind)
            stack.callback(relay.stop)
            relay.start()
            ports = free_ports(self.sizes.agents[-1])
            fleet = self._path()
            services = [(port, far.port) for port in ports]
            fleet.write_text(json.dumps(enrol(relay.state, relay.port, services)))
            self._idle_agents(relay, fleet, stack)
        if bind is not None:
            self.notes.append(
                "Public ports were open on one address only, so the relay held one listening"
                " socket for each agent instead of two."
            )
        most = self.sizes.agents[-1]
        memory, cpu = "memory of the relay for an agent", "CPU of the relay for 100 idle agents"
        many = f"{most:,} agents"
        self._target("7", f"{cpu}, {many}", 1.0, "% of a core", self._of_ours(cpu, agents=most))
        self._target("7", f"{memory}, {many}", 60.0, "KB", self._of_ours(memory, agents=most))
        self._linear(memory, "agents", self.sizes.agents)
        self._linear(cpu, "agents", self.sizes.agents)
        self._plot_memory(
            "memory-by-agents", "agents", self.sizes.agents, {"relay": (memory, OURS)}
        )

    def _idle_agents(self, relay: programs.Relay, fleet: Path, stack: contextlib.ExitStack) -> None:
        pid, note = relay.process.pid, self.book.note
        before = rss_bytes(pid)
        for present, count in pairwise((0, *self.sizes.agents)):
            began = time.monotonic()
            argv = [sys.executable, "-m", "tests.support.many_agents", fleet, present, count]
            agents = ProcessUnderTest([*map(str, argv)], environment=os.environ, cwd=ROOT)
            stack.callback(agents.stop)
            agents.wait_for_output("^ready$", limit=LONG)
            rate = (count - present) / (time.monotonic() - began)
            note("agents that come", OURS, rate, "a second", agents=count)
            self._settle()
            each = (rss_bytes(pid) - before) / count / 1e3
            note("memory of the relay for an agent", OURS, each, "KB", agents=count)
            spent, began = cpu_seconds(pid), time.monotonic()
            # The last of all is what the target is about.
            last = count == self.sizes.agents[-1]
            time.sleep(self.sizes.idle_seconds * (1 if last else 2 / 3))
            share = (cpu_seconds(pid) - spent) / (time.monotonic() - began)
            each = share * 100 / (count / 100)
            note("CPU of the relay for 100 idle agents", OURS, each, "% of a core", agents=count)
        if lost := [line for line in relay.process.log if " link-down " in line]:
            self.notes.append(f"{len(lost)} links of idle agents were lost, the first: {lost[0]}")

    # --- Telling

    def _of_ours(self, name: str, /, **by: Scalar) -> list[float]:
        return self.book.find(name, OURS, **by)

    def _settle(self) -> None:
        time.sleep(self.sizes.settle_seconds)

    def _path(self) -> Path:
        """A new one for each carrier, fleet or home."""
        self._paths += 1
        return self.work / f"scale-{self._paths}"

    def _target(
        self,
        number: str,
        name: str,
        limit: float,
        unit: str,
        values: Sequence[float],
        *,
        at_most: bool = True,
    ) -> None:
        target = Target(
            number=number,
            name=name,
            limit=limit,
            at_most=at_most,
            measured=statistics.median(values) if values else None,
            unit=unit,
            note=f"{figure(min(values))}–{figure(max(values))}" if len(values) > 1 else "",
        )
        self.targets.append(target)

    def _linear(self, name: str, what: str, sizes: Sequence[int]) -> None:
        """Target 9: what one costs among the most, over what one costs among the fewest."""
        few, many = (self._of_ours(name, **{what: size}) for size in (sizes[0], sizes[-1]))
        ratios = [one / other for one, other in zip(many, few, strict=True) if other]
        self._target("9", f"{name}, of {sizes[-1]:,} {what} ÷ of {sizes[0]:,}", LINEAR, "×", ratios)

    def _plot_memory(
        self, name: str, what: str, sizes: Sequence[int], lines: dict[str, tuple[str, str]]
    ) -> None:
        series = []
        for label, (memory, carrier) in lines.items():
            values = [self.book.find(memory, carrier, **{what: size}) for size in sizes]
            if all(values):
                totals = [
                    [one * size / 1e3 for one in some]
                    for some, size in zip(values, sizes, strict=True)
                ]
                series.append(
                    Series(
                        label=label,
                        x=(0, *map(float, sizes)),
                        y=(0, *map(statistics.median, totals)),
                        spread=((0, 0), *((min(some), max(some)) for some in totals)),
                    )
                )
        plot = Plot(
            name=name,
            title=f"What idle {what} add to memory",
            x_label=f"idle {what}",
            y_label="MB",
            series=tuple(series),
        )
        self.plots.append(plot)


FAILED: Final = "visitors without an echo"


def spread(received: Sequence[int]) -> float:
    """Most ÷ least; who got nothing at all counts as one byte."""
    return max(received) / max(1, min(received))


def visitors(carrier: Carrier, *what: object) -> ProcessUnderTest:
    argv = command("many_visitors", LOOPBACK, carrier.ports[0], *what)
    return ProcessUnderTest(argv, environment=os.environ, cwd=ROOT)


def free_ports(count: int) -> list[int]:
    """As `free_port` of the tests, which looks more closely and so takes too long for thousands."""
    ports: list[int] = []
    candidates = iter(random.sample(range(20_000, 30_000), 10_000))
    while len(ports) < count:
        port = next(candidates)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.append(port)
    return ports


@contextlib.contextmanager
def on_all_addresses() -> Iterator[str | None]:
    """Yields the address for public ports: None, as by default, if there is a network of our own.

    Without root thousands of ports would be open to everybody, so there it is the loopback.
    """
    with contextlib.ExitStack() as stack:
        try:
            own = namespace.Namespace(f"lab-{os.getpid()}-0-scale")
        except (AssertionError, OSError):
            yield LOOPBACK
            return
        stack.callback(own.remove)
        own.ip("link set lo up")
        stack.enter_context(own.entered())
        yield None
