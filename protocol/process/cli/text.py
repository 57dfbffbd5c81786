"""How commands lay out what they show: for a terminal of 80 columns, and for pipes."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TextIO

# What a terminal has at least.
_COLUMNS: Final = 80


def span(seconds: float) -> str:
    """The two biggest units of a duration, such as 2d3h, 1h30m or 59s."""
    rest = max(int(seconds), 0)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        parts.append((count, unit))
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    first, *others = parts
    return f"{first[0]}{first[1]}" + "".join(f"{n}{unit}" for n, unit in others[:1] if n)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns for a terminal of 80; a last cell that does not fit has a line of its own."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head) - 1)]
    lines = []
    for row in (head, *rows):
        start = "".join(f"{cell:{width}}  " for cell, width in zip(row, widths, strict=False))
        if len(start) + len(row[-1]) > _COLUMNS:
            lines.append(start.rstrip())
            start = "    "
        lines.append((start + row[-1]).rstrip())
    return "\n".join(lines) + "\n"


def amount(count: int) -> str:
    """Bytes, with two or three digits that count, such as 999 B, 1.2 kB or 44 MB."""
    size, units = float(count), ["TB", "GB", "MB", "kB", "B"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop()
    unit = units[-1]
    return f"{size:.1f} {unit}" if unit != "B" and size < 9.95 else f"{size:.0f} {unit}"


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 0.00005:
        return "under 0.1 ms"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'s'[: count != 1]}"


def times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def wrapped(text: str, first: str, rest: str) -> str:
    """`text` over as many lines as it takes, whose beginnings are `first` and `rest`."""
    return textwrap.fill(
        text,
        _COLUMNS,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )


Colour = Literal["bold", "dim", "red", "green", "yellow"]
_CODES: Final[dict[Colour, int]] = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33}


@dataclass(frozen=True, slots=True)
class Paint:
    """Colours where they are wanted: on a terminal, unless NO_COLOR is set (no-color.org)."""

    on: bool

    @classmethod
    def of(cls, output: TextIO | None = None) -> Paint:
        output = output or sys.stdout
        dumb = os.environ.get("TERM", "dumb") == "dumb"
        return cls(output is not None and output.isatty() and not dumb and not _no_color())

    def __call__(self, colour: Colour, text: str) -> str:
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if self.on and text else text


def _no_color() -> bool:
    return bool(os.environ.get("NO_COLOR"))


def ports_in_words(ports: Sequence[int]) -> str:
    return f"port{'s'[: len(ports) > 1]} {', '.join(map(str, ports))}"


def port_list(ports: Sequence[int]) -> str:
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]} +{len(ports) - 1}"
