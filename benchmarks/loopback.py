"""Targets 1 to 3: one stream over loopback through four processes and nothing else.

    load generator ── relay ── agent ── far end

"Up" is from the target to the visitor, the router's uplink; "down" is the other way. All carriers
run throughout and are measured in turn, so that each round sees them in the same minute.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.support.far_end import FarEnd

from .carriers import AES_GCM, Autossh, Carrier, Direct, Rathole, Relay, Ssh, usage
from .ends import WAYS, Way, echo, transfer
from .machine import Others, cubic_loopback
from .report import Findings, Notebook, Plan, Plot, Series, Target, ratio

OURS: Final = "ssh-relay"
SSH: Final = "ssh -R"
SSH_AES: Final = "ssh -R aes128-gcm"

# What a program that copies files writes at once.
PIECE: Final = 256 << 10
BY_PIECE: Final = (OURS, SSH_AES, SSH, Direct.name)
PIECES: Final = tuple(1 << power for power in range(10, 21, 2))
# A transfer of these takes long enough to tell the rate, and opens every window on the way.
FIRST_SIZE: Final = 64 << 20
LARGEST_SIZE: Final = 4 << 30

ECHO_SIZE: Final = 64
# As many of a round as its 99th percentile needs to rest on twenty of them, in half a second.
ECHOES: Final = 2000


def run(plan: Plan) -> Findings:
    with cubic_loopback() as congestion, contextlib.ExitStack() as stack:
        far = stack.enter_context(FarEnd())
        present, absent = [], []
        for number, carrier in enumerate(candidates()):
            if reason := carrier.missing():
                absent.append(f"{carrier.name} left out: {reason}.")
                continue
            stack.enter_context(carrier.running(plan.work / f"carrier-{number}", [far.port]))
            present.append(carrier)
        bench = Bench(plan, present)
        others = Others()
        bench.measure()
        processes = [far.pid, *(pid for carrier in present for pid in carrier.pids())]
        remark = others.remark(processes)
    versions = ", ".join(f"{one.name} ({one.version})" for one in present if one.version)
    notes = [
        f"{versions}; congestion control {congestion} for everybody. Up is from the "
        "target to the visitor, down from the visitor to the target.",
        *absent,
    ]
    return Findings(
        title="One stream over loopback",
        measurements=bench.book.measurements([one.name for one in present]),
        targets=tuple(bench.targets()),
        plots=tuple(bench.plots()),
        notes=tuple(notes),
        others=remark,
    )


def candidates() -> list[Carrier]:
    return [
        Relay(),
        Ssh(AES_GCM),
        Ssh(),
        Autossh(),
        Rathole(noise=True),
        Rathole(noise=False),
        Direct(),
    ]


@dataclass(slots=True)
class Bench:
    plan: Plan
    carriers: Sequence[Carrier]
    book: Notebook = field(default_factory=Notebook)
    _echoes: dict[str, list[float]] = field(default_factory=dict)
    _rates: dict[tuple[str, Way], float] = field(default_factory=dict)

    def measure(self) -> None:
        first = min(FIRST_SIZE, int(1e9 * self.plan.seconds))
        for carrier in self.carriers:
            for way in WAYS:
                seconds = transfer(carrier.ports[0], way, first, piece=PIECE)
                self._rates[carrier.name, way] = first / seconds
        for number in range(self.plan.rounds + 1):
            self._one_round(number, counts=number > 0)  # the first one warms up
        for number in range(max(1, self.plan.rounds // 2)):
            self._one_round_by_piece(number)

    def _in_turn(self, number: int) -> list[Carrier]:
        """All carriers, each round beginning with another one, so that none is always first."""
        start = number % len(self.carriers)
        return [*self.carriers[start:], *self.carriers[:start]]

    def _one_round(self, number: int, *, counts: bool) -> None:
        # Carriers in the inner loop: what is compared is measured within seconds of each other.
        for way in WAYS:
            for carrier in self._in_turn(number):
                rate, spent = self._transfer(carrier, way)
                if not counts:
                    continue
                self._note(f"throughput {way}", carrier, rate / 1e6)
                if carrier.pids():
                    self._note(f"CPU {way}", carrier, spent * 1e9)
        count = max(100, int(ECHOES * min(1.0, 2 * self.plan.seconds)))
        for carrier in self._in_turn(number):
            times = sorted(echo(carrier.ports[0], size=ECHO_SIZE, count=count))
            if counts:
                self._note("round trip p50", carrier, statistics.median(times) * 1e6)
                self._note("round trip p99", carrier, times[int(len(times) * 0.99)] * 1e6)
                self._echoes.setdefault(carrier.name, []).extend(times)

    def _transfer(self, carrier: Carrier, way: Way) -> tuple[float, float]:
        """Bytes a second, and the carrier's CPU seconds a byte."""
        size = self._size(carrier, way)
        before = usage(carrier.pids()).cpu
        seconds = transfer(carrier.ports[0], way, size, piece=PIECE)
        spent = usage(carrier.pids()).cpu - before
        self._rates[carrier.name, way] = size / seconds
        return size / seconds, spent / size

    def _one_round_by_piece(self, number: int) -> None:
        for piece in PIECES:
            for way in WAYS:
                for carrier in self._in_turn(number):
                    if carrier.name not in BY_PIECE:
                        continue
                    # There are many of them, and a quarter of a second tells them apart.
                    size = max(1, self._size(carrier, way) // 4)
                    seconds = transfer(carrier.ports[0], way, size, piece=piece)
                    self._note(f"throughput {way}", carrier, size / seconds / 1e6, piece=piece)

    def _size(self, carrier: Carrier, way: Way) -> int:
        """What takes about as long as the plan says."""
        return min(LARGEST_SIZE, max(1, int(self._rates[carrier.name, way] * self.plan.seconds)))

    def _note(self, name: str, carrier: Carrier, value: float, **by: int) -> None:
        self.book.note(name, carrier.name, value, UNITS[name], **by)

    # --- What came of it

    def targets(self) -> list[Target]:
        def against(
            number: str, what: str, theirs: str, measured: str, limit: float, *, at_most: bool
        ) -> Target:
            return ratio(
                number,
                f"{what}, ÷ {theirs}",
                self.book.find(measured, OURS),
                self.book.find(measured, theirs),
                limit=limit,
                at_most=at_most,
            )

        up, down = "throughput of one stream, up", "throughput of one stream, down"
        idle = f"round trip of {ECHO_SIZE} bytes, idle"
        return [
            against("1", up, SSH_AES, "throughput up", 1.2, at_most=False),
            against("1", down, SSH_AES, "throughput down", 1.4, at_most=False),
            against("1", up, SSH, "throughput up", 2.5, at_most=False),
            against("1", down, SSH, "throughput down", 2.5, at_most=False),
            against("2", f"{idle}, median", SSH_AES, "round trip p50", 1.6, at_most=True),
            against("2", f"{idle}, median, stretch", SSH_AES, "round trip p50", 1.3, at_most=True),
            against("2", f"{idle}, 99th percentile", SSH_AES, "round trip p99", 2, at_most=True),
            against("3", "CPU of both sides a GB, up", SSH_AES, "CPU up", 0.85, at_most=True),
            against("3", "CPU of both sides a GB, down", SSH_AES, "CPU down", 0.85, at_most=True),
        ]

    def plots(self) -> list[Plot]:
        find = self.book.find
        everybody = [one.name for one in self.carriers]
        # Without the bare path, beside which all carriers would look alike.
        names = [name for name in everybody if name != Direct.name]
        return [
            Plot(
                name="throughput",
                title="One stream over loopback",
                x_label="",
                y_label="MB/s",
                kind="bars",
                series=tuple(
                    self._series(way, {name: find(f"throughput {way}", name) for name in names})
                    for way in WAYS
                ),
            ),
            *(
                Plot(
                    name=f"throughput-by-piece-{way}",
                    title=f"One stream over loopback, {way}, by what is written at once",
                    x_label="bytes a write",
                    y_label="MB/s",
                    log_x=True,
                    series=tuple(
                        self._series(
                            name, {p: find(f"throughput {way}", name, piece=p) for p in PIECES}
                        )
                        for name in names
                        if find(f"throughput {way}", name, piece=PIECES[0])
                    ),
                )
                for way in WAYS
            ),
            Plot(
                name="round-trip-idle",
                title=f"Round trip of {ECHO_SIZE} bytes over loopback, idle",
                x_label="µs",
                y_label="share of round trips within",
                kind="steps",
                log_x=True,
                series=tuple(distribution(name, self._echoes[name]) for name in everybody),
            ),
        ]

    def _series(
        self, label: str, points: Mapping[str, list[float]] | Mapping[int, list[float]]
    ) -> Series:
        values = points.values()
        return Series(
            label=label,
            x=tuple(points),  # type: ignore[arg-type]
            y=tuple(map(statistics.median, values)),
            spread=tuple((min(one), max(one)) for one in values),
        )


UNITS: Final = {
    "throughput up": "MB/s",
    "throughput down": "MB/s",
    "CPU up": "s/GB",
    "CPU down": "s/GB",
    "round trip p50": "µs",
    "round trip p99": "µs",
}


def distribution(label: str, times: Sequence[float]) -> Series:
    """Up to the 99th percentile: beyond it a plot would show nothing but its longest one."""
    ordered = sorted(times)
    shares = [step / 200 for step in range(199)]
    at = tuple(ordered[int(share * len(ordered))] * 1e6 for share in shares)
    return Series(label=label, x=at, y=tuple(shares))
