"""One fault done to one network, measured the same way whatever carries the user's ssh."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from tests.support.lab.network import Network
from tests.support.waiting import LIMIT

N = TypeVar("N", bound=Network)

# Of whoever waits for a new login; far apart enough not to be a load of its own.
PAUSE: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What is the same for all faults, in seconds."""

    before: float
    after: float  # from when it is usable again until the traffic is told to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """Which lines of the logs tell what."""

    noticed: re.Pattern[str]  # that something is amiss
    lost: re.Pattern[str]  # that a link is over, told once for each


@dataclass(kw_only=True)
class Trial(Generic[N]):
    lab: N
    pace: Pace
    record: Callable[[str, object], None]
    name: str
    by: str
    signs: Signs
    struck: float = 0.0
    whole: float = 0.0

    def strike(self, fault: Callable[[], object]) -> None:
        time.sleep(self.pace.before)
        self.struck = time.monotonic()
        fault()
        self.whole = time.monotonic()

    def noticed(self) -> float | None:
        """How long after the fault began somebody wrote a word about it."""
        lines = self.lab.journal.matching(self.signs.noticed, since=self.struck)
        return lines[0].at - self.struck if lines else None

    def links_lost(self) -> int:
        return len(self.lab.journal.matching(self.signs.lost, since=self.struck))

    def write(
        self,
        *,
        login: float | None = None,
        shell: float | str | None = None,
        silence: float | None = None,
        trip: float | None = None,
        lost: int | None = None,
    ) -> None:
        """Add a row to the table that is printed at the end of the run."""
        row = {
            "fault": self.name,
            "by": self.by,
            "noticed s": seconds(self.noticed()),
            "new login s": seconds(login),
            "running ssh s": shell if isinstance(shell, str) else seconds(shell),
            "its silence s": seconds(silence),
            "round trip s": seconds(trip),
            "lost bytes": "-" if lost is None else str(lost),
            "links lost": str(self.links_lost()),
            "seed": str(self.lab.wan.seed),
        }
        self.record("fault", row)


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


class NewLogin:
    """Visitors who come one after the other, until the first is answered."""

    def __init__(self, network: Network) -> None:
        self.answered: float | None = None
        self._network = network
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._visit, daemon=True)
        self._thread.start()

    def _visit(self) -> None:
        while not self._stopping.is_set():
            if self._network.answers():
                self.answered = time.monotonic()
                return
            self._stopping.wait(PAUSE)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(LIMIT)


@contextlib.contextmanager
def new_login(network: Network) -> Iterator[NewLogin]:
    visitors = NewLogin(network)
    try:
        yield visitors
    finally:
        visitors.stop()
