"""Typing beside bulk over a thin line; `wan` says how."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from .report import Findings, Notebook, Plan, Plot, Scalar, Series, Target
from .wan_lab import (
    OURS,
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


FIGURES: Final[Figures] = {
    "echo beyond ping, median": ("ms", lambda one, *_: 1e3 * statistics.median(beyond(one))),
    "echo beyond ping, 95 %": ("ms", lambda one, *_: 1e3 * percentile(beyond(one), 95)),
    "ping, median": ("ms", lambda one, *_: 1e3 * statistics.median(pings(one))),
    "unsent in the socket": ("ms", lambda one, line, _: 8e3 * one.unsent / line.rate),
    "sent again": ("segments", lambda one, *_: one.retransmitted),
    "copies, of the line": ("%", lambda one, line, _: 100 * share(one, line)),
    "copies, most to least": ("×", lambda one, *_: max(one.copies) / max(1, min(one.copies))),
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
    book = Notebook()
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
                note(book, FIGURES, name, carried, condition.line, **condition.parameters)
        measured.append((condition, rounds))
    return Findings(
        title="Typing beside bulk",
        measurements=book.measurements(),
        targets=tuple(one for what in measured for one in typing_targets(book, *what)),
        plots=tuple(typing_plot(*what) for what in measured),
        notes=(
            "Typing: an echo of 64 bytes, beyond a ping through the same queue at the same moment,"
            " while copies load the uplink; 95 % is the 95th percentile. A line's share is what"
            " arrives of what its packets can carry as payload.",
        ),
    )


def typing_targets(book: Notebook, condition: Condition, rounds: Rounds) -> Iterator[Target]:
    for words in ("median", "95 %"):
        name = f"echo beyond ping, {words}"
        # Of one round each, as they were measured one after the other.
        ours, theirs = (book.find(name, one, **condition.parameters) for one in (OURS, THEIRS))
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
