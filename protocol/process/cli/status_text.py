"""Lines about a link and its streams, as both `status` commands show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from protocol.process.cli.text import Paint, amount, milliseconds, span, times, wrapped
from protocol.process.control.schema import LinkStatus
from protocol.process.names import MAX_NAME
from protocol.session.side import Side
from protocol.transport.status import StreamStatus

# Streams shown one by one, for each service; --json has them all.
_MOST_STREAMS: Final = 20


def link_lines(attached: bool, link: LinkStatus, paint: Paint) -> list[str]:
    """How the link is, then indented where it leads and what became of the last one."""
    age = link["age"]
    if age is None:
        return [paint("yellow", "no link yet")]
    if attached:
        state = f"{paint('green', 'attached')} for {span(age)}"
        where = f"{link['address']}, round trip {milliseconds(link['rtt'])}"
    else:
        state = f"{paint('yellow', 'away')} for {span(age)}"
        where = f"last at {link['address']}"
    resumed = f"resumed {times(link['resumed'])}" if link["resumed"] else "never resumed"
    lines = [f"{state}, {resumed}", f"  {where}"]
    cut = link["last_cut"]
    if cut is not None:
        lines.append(wrapped(f"last cut {span(cut['age'])} ago: {cut['reason']}", "  ", "    "))
    return lines


def service_name(name: str) -> str:
    """`name`, cut to what a column has room for."""
    return f"{name:.{MAX_NAME}}"


def stream_lines(streams: Sequence[StreamStatus], *, side: Side) -> list[str]:
    """Each stream of one service: visitor, age, and bytes as the visitor sees them."""
    lines = []
    for one in streams[:_MOST_STREAMS]:
        sent, received = one["from_socket"], one["to_socket"]
        if not side.value.opens_streams:  # its socket is the target's
            sent, received = received, sent
        # 39 for any IPv6 address; with an indentation of four this is 80 columns at most.
        lines.append(
            f"{one['source']:<39} {span(one['age']):>6}"
            f"  sent {amount(sent):>6}  received {amount(received):>6}"
        )
    if len(streams) > _MOST_STREAMS:
        lines.append(f"and {len(streams) - _MOST_STREAMS} more")
    return lines
