"""How commands lay out what they show: for a terminal of 80 columns, and for pipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

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
