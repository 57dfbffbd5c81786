"""What a part of the benchmarks found out, as data, and how it is told.

A part returns a `Findings`. `write` makes of all of them results.json, results.md and the plots.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

Scalar = str | int | float | bool


class Unable(Exception):  # noqa: N818 - an outcome, not a defect
    """A part cannot be measured on this machine; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How thorough to be, and where."""

    quick: bool
    # So small that it only shows whether everything runs.
    trial: bool
    # Of each thing measured, with all carriers side by side in each; one more goes before, to warm
    # up, and is thrown away.
    rounds: int
    # What a transfer is made large enough to last.
    seconds: float
    # For keys, state and logs; removed afterwards.
    work: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One thing of one carrier, measured once a round."""

    name: str
    carrier: str
    unit: str
    values: tuple[float, ...]
    # What else was set: {"record": 4096}, {"streams": 8}.
    parameters: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A limit on one measured figure, most often a ratio of two medians of one run."""

    number: str  # of the target in docs/performance.md; sorted as text
    name: str
    limit: float
    at_most: bool
    measured: float | None  # None: what it is compared with could not be measured here
    unit: str = "×"
    # How the figure varies, or why there is none.
    note: str = ""

    @property
    def holds(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    label: str
    x: tuple[float, ...] | tuple[str, ...]
    y: tuple[float, ...]
    # Lowest and highest, for each y.
    spread: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    name: str  # of the file, without .svg
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    kind: Literal["lines", "bars", "steps"] = "lines"
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Of one part, under its title."""

    title: str
    measurements: tuple[Measurement, ...] = ()
    targets: tuple[Target, ...] = ()
    plots: tuple[Plot, ...] = ()
    # Sentences a reader of the numbers has to know.
    notes: tuple[str, ...] = ()
    # What else the machine did meanwhile; stands before everything, as it may devalue it.
    others: str = ""


By = tuple[tuple[str, Scalar], ...]


@dataclass(slots=True)
class Notebook:
    """Values as they are measured, by what they are, whose, and what else was set."""

    _values: dict[tuple[str, str, By], list[float]] = field(default_factory=dict)
    _units: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, carrier: str, value: float, unit: str, /, **by: Scalar) -> None:
        self._values.setdefault((name, carrier, tuple(by.items())), []).append(value)
        self._units[name] = unit

    def find(self, name: str, carrier: str, /, **by: Scalar) -> list[float]:
        return self._values.get((name, carrier, tuple(by.items())), [])

    def measurements(self, carriers: Sequence[str] = ()) -> tuple[Measurement, ...]:
        """Those without a parameter first, by name; those of a name by parameter and carrier.

        Names, and all else without `carriers`, are in the order in which they were noted.
        """
        names = list(self._units)

        def order(key: tuple[str, str, By]) -> tuple[object, ...]:
            name, carrier, by = key
            rest = (by, carriers.index(carrier)) if carriers else ()
            return (bool(by), names.index(name), *rest)

        return tuple(
            Measurement(
                name=name,
                carrier=carrier,
                unit=self._units[name],
                values=tuple(values),
                parameters=dict(by),
            )
            for (name, carrier, by), values in sorted(
                self._values.items(), key=lambda one: order(one[0])
            )
        )


def ratio(
    number: str,
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    limit: float,
    at_most: bool,
) -> Target:
    """A target on ours ÷ theirs: the median over the rounds, each a pair of the same seconds.

    What the machine did meanwhile hits both of a pair, so their ratio varies less than either.
    """
    if not theirs:
        note, measured = "nothing to compare with", None
    else:
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        measured = statistics.median(ratios)
        note = f"{figure(min(ratios))}–{figure(max(ratios))} in {len(ratios)} rounds"
    return Target(
        number=number, name=name, limit=limit, at_most=at_most, measured=measured, note=note
    )


# --- Telling -------------------------------------------------------------------------------------


def as_json(machine: Mapping[str, Scalar], parts: Sequence[Findings]) -> dict[str, Any]:
    return {
        "machine": dict(machine),
        "measurements": [
            {"part": part.title} | dataclasses.asdict(one) | {"median": one.median}
            for part in parts
            for one in part.measurements
        ],
        "targets": [dataclasses.asdict(one) | {"holds": one.holds} for one in _targets(parts)],
        "plots": [dataclasses.asdict(one) for part in parts for one in part.plots],
        "notes": [note for part in parts for note in part.notes],
        "others": {part.title: part.others for part in parts if part.others},
    }


def _targets(parts: Sequence[Findings]) -> list[Target]:
    return sorted((one for part in parts for one in part.targets), key=lambda one: one.number)


def write(folder: Path, machine: Mapping[str, Scalar], parts: Sequence[Findings]) -> str:
    """Write everything to `folder`, and return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(machine, parts), indent=1)
    (folder / "results.json").write_text(text + "\n")
    drawn = draw(folder, [plot for part in parts for plot in part.plots])
    markdown = as_markdown(machine, parts, drawn)
    (folder / "results.md").write_text(markdown)
    return markdown


def as_markdown(machine: Mapping[str, Scalar], parts: Sequence[Findings], drawn: bool) -> str:
    described = ", ".join(f"{name} {value}" for name, value in machine.items())
    blocks = [f"# Benchmarks\n\n{described}."]
    blocks += [f"{part.title}: {part.others}" for part in parts if part.others]
    if targets := _targets(parts):
        blocks += ["## Targets", verdict(targets), targets_table(targets)]
    for part in parts:
        blocks += [f"## {part.title}", *part.notes, *measurement_tables(part.measurements)]
        if drawn:
            blocks += [f"![{plot.title}]({plot.name}.svg)" for plot in part.plots]
    return "\n\n".join(blocks) + "\n"


def verdict(targets: Sequence[Target]) -> str:
    measured = [one.holds for one in targets if one.holds is not None]
    missing = len(targets) - len(measured)
    said = f"{sum(measured)} of {len(measured)} hold"
    return f"{said}, {missing} not measured." if missing else f"{said}."


def targets_table(targets: Sequence[Target]) -> str:
    rows = [
        (
            one.number,
            one.name,
            f"{'at most' if one.at_most else 'at least'} {figure(one.limit)} {one.unit}",
            f"{figure(one.measured)} {one.unit}" if one.measured is not None else "–",
            {True: "holds", False: "falls short", None: "not measured"}[one.holds],
            one.note,
        )
        for one in targets
    ]
    return table(("target", "what", "limit", "measured", "", "spread"), rows)


def measurement_tables(measurements: Sequence[Measurement]) -> list[str]:
    """A line for each thing measured, a column for each carrier, medians with their spread.

    What was measured with a parameter varied gets a table of its own.
    """
    together: dict[tuple[str, ...], list[Measurement]] = {}
    for one in measurements:
        subject = (one.name, *one.parameters) if one.parameters else ()
        together.setdefault(subject, []).append(one)
    return [_measurement_table(some) for some in together.values()]


def _measurement_table(measurements: Sequence[Measurement]) -> str:
    carriers = list(dict.fromkeys(one.carrier for one in measurements))
    rows: dict[str, dict[str, str]] = {}
    for one in measurements:
        parameters = [f"{name} {value}" for name, value in one.parameters.items()]
        row = rows.setdefault(f"{', '.join([one.name, *parameters])}, {one.unit}", {})
        low, high = min(one.values), max(one.values)
        spread = f" ({figure(low)}–{figure(high)})" if len(one.values) > 1 else ""
        row[one.carrier] = figure(one.median) + spread
    lines = [[what, *(row.get(one, "–") for one in carriers)] for what, row in rows.items()]
    return table(["", *carriers], lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(value: float) -> str:
    """Three digits that count, or all before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


# --- Drawing -------------------------------------------------------------------------------------

_SIZE: Final = (7.0, 4.2)  # inches, as matplotlib wants it


def draw(folder: Path, plots: Sequence[Plot]) -> bool:
    """Draw each plot as SVG; False without matplotlib, which only this needs."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    # Loaded when there is something to draw, long after the measurements.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text as text, and the same file whenever the numbers are the same.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"})

    for plot in plots:
        canvas = Figure(figsize=_SIZE, layout="constrained")
        axes = canvas.add_subplot()
        _draw(axes, plot)
        axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
        axes.grid(visible=True, alpha=0.3)
        if plot.log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:,.0f}")
        if plot.log_y:
            axes.set_yscale("log")
        elif plot.kind != "steps":
            axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
        canvas.savefig(folder / f"{plot.name}.svg", metadata={"Date": None})
    return True


def _draw(axes: Any, plot: Plot) -> None:
    width = 0.8 / max(1, len(plot.series))
    for number, series in enumerate(plot.series):
        error = None
        if series.spread:
            lows = [y - low for y, (low, _) in zip(series.y, series.spread, strict=True)]
            highs = [high - y for y, (_, high) in zip(series.y, series.spread, strict=True)]
            error = (lows, highs)
        if plot.kind == "bars":
            places = [place + number * width for place in range(len(series.x))]
            axes.bar(places, series.y, width, yerr=error, label=series.label, capsize=2)
            # Names of more than one word would run into each other.
            names = [textwrap.fill(str(name), 10) for name in series.x]
            axes.set_xticks([place + 0.4 - width / 2 for place in range(len(names))], names)
        elif plot.kind == "steps":
            axes.plot(series.x, series.y, label=series.label, drawstyle="steps-post")
        else:
            axes.errorbar(
                series.x, series.y, yerr=error, label=series.label, marker="o", ms=3, capsize=2
            )
