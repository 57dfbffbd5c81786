"""Counts since the process began, for metrics: what no other state shows.

Counts only rise. Agents choose the names of their services, and may choose new ones all the time,
so only the first MOST_SERVICES names are counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from relay_server.agents.reasons import HandshakeFailure, Refusal

# A relay's services are called ssh, web and the like; each name is two time series, for ever.
MOST_SERVICES: Final = 64
OTHER_SERVICES: Final = "(other)"  # no service can be called so


class Carried(Protocol):
    """Of a splice, what is counted: bytes from the visitor, and to it."""

    @property
    def sent(self) -> int: ...
    @property
    def delivered(self) -> int: ...


@dataclass(slots=True)
class Counters:
    links: int = 0  # that attached
    resumed: int = 0  # of those, how many continued a session
    handshakes_failed: Counter[HandshakeFailure] = field(default_factory=Counter)
    denied: Counter[int] = field(default_factory=Counter)  # agents, by DenialCode
    visitors: Counter[str] = field(default_factory=Counter)  # carried, by service
    refused: Counter[Refusal] = field(default_factory=Counter)  # visitors
    accept_failures: int = 0
    _ended: list[int] = field(default_factory=lambda: [0, 0])  # bytes of those who went
    _carried: dict[Carried, str] = field(default_factory=dict)  # those who are here

    def attached(self, *, resumed: bool) -> None:
        self.links += 1
        self.resumed += resumed

    def accept_failed(self) -> None:
        self.accept_failures += 1

    @contextmanager
    def carrying(self, service: str, splice: Carried) -> Iterator[None]:
        if service not in self.visitors and len(self.visitors) >= MOST_SERVICES:
            service = OTHER_SERVICES
        self.visitors[service] += 1
        self._carried[splice] = service
        # What the process before us has carried is not counted again.
        self._ended[0] -= splice.sent
        self._ended[1] -= splice.delivered
        try:
            yield
        finally:
            # In one turn, so that the sum never falls.
            del self._carried[splice]
            self._ended[0] += splice.sent
            self._ended[1] += splice.delivered

    @property
    def present(self) -> Counter[str]:
        """Visitors who are carried now, by service."""
        here = Counter(dict.fromkeys(self.visitors, 0))
        here.update(self._carried.values())
        return here

    @property
    def received(self) -> int:
        """Bytes from all visitors."""
        return self._ended[0] + sum(one.sent for one in self._carried)

    @property
    def sent(self) -> int:
        """Bytes to all visitors."""
        return self._ended[1] + sum(one.delivered for one in self._carried)
