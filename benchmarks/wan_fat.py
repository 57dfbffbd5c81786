"""One stream over a long fat line; `wan` says how."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.support.lab.network import BOTH, Network
from tests.support.lab.typing_load import Way

from .report import Findings, Notebook, Plan, Target
from .wan_lab import (
    OURS,
    PLAIN,
    THEIRS,
    Carried,
    Figures,
    Line,
    Ours,
    Theirs,
    measure,
    note,
    rounds_of,
    settle,
    share,
    spread,
)

SYSCTLS: Final = {
    "net.ipv4.tcp_wmem": "4096 16384 33554432",
    "net.ipv4.tcp_rmem": "4096 131072 33554432",
}
# For the product of bandwidth and delay, the queue, and an ack that comes 50 ms later.
FAT_OPTIONS: Final = 'replay = "16MiB"\nstream_window_max = "8MiB"\nsession_window = "16MiB"\n'
FAT_SHARE: Final = 0.8
FAT_MEMORY: Final = 64.0  # MB


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
    book = Notebook()
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
                note(book, figures_of(name), name, carried, line, way, line=line.name, way=way)
    return Findings(
        title="A long fat line",
        measurements=book.measurements(),
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


FAT_FIGURES: Final[Figures] = {
    "one copy, of the line": ("%", lambda one, line, way: 100 * share(one, line, way)),
    "relay's memory more": ("MB", lambda one, line, way: grown(one)),
    "forwarder, of a core": ("%", lambda one, line, way: 100 * one.forwarder_cpu),
}


def figures_of(carrier: str) -> Figures:
    """A plain connection takes nothing of a relay's memory."""
    if not carrier.startswith(PLAIN):
        return FAT_FIGURES
    return {name: one for name, one in FAT_FIGURES.items() if name != "relay's memory more"}


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
