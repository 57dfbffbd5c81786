"""The parts that the answers of both programs have in common, as they stand in JSON.

Scripts read them: a key keeps its name and its meaning. The whole answers are in
`relay_server.agents.status` and `relay_agent.link.status`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, TypedDict

Answer: TypeAlias = Mapping[str, object]


class LastCut(TypedDict):
    age: float  # seconds
    reason: str


class LinkFacts(TypedDict):
    """What has become of the links of one agent."""

    age: float | None  # seconds that it has, or has had, no or this link; None if it had none yet
    links: int
    resumed: int  # of those, how many continued a session
    last_cut: LastCut | None


class LinkStatus(LinkFacts):
    address: str  # of the peer, at the link or at the last one; empty if there was none
    rtt: float | None  # seconds


class FindingEntry(TypedDict):
    """One step of a doctor."""

    step: str
    verdict: str  # a `Verdict`
    found: str
    advice: str  # empty if there is none
