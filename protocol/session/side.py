"""The two ends of a session, and how what they do differs."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What one end of a session does."""

    # It has the visitors and opens a stream for each; the other end has the targets. The end that
    # does not open streams publishes services, and the end that opens them answers.
    opens_streams: bool
    # It asks a silent link for a sign of life; the other end hears that, and asks only if it hears
    # nothing (`liveness`).
    pings_first: bool


class Side(enum.Enum):
    """An end of a session; its value says what that end does."""

    AGENT = Role(opens_streams=False, pings_first=True)
    RELAY = Role(opens_streams=True, pings_first=False)
