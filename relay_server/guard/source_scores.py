"""What is known of the sources of visitors: how many came lately and did not log in. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay_server.net.source import source_of

# Of visitors who came: those of the last minutes. Somebody who was cut is back to one by the time
# he tries again; a bot that comes each ten seconds stays at nine.
TRY_HALF_LIFE: Final = 60.0
# Of those who ended without a login. A person who mistyped is forgiven in minutes; a bot comes
# again sooner than that.
HALF_LIFE: Final = 600.0
# Healed within the hour, whatever was done: six half-lives.
WORST: Final = 64.0

# In so many seconds a burden fades by less than that.
_STALE: Final = 0.5
# Half a point is no reason to remember a source.
_FORGOTTEN: Final = 0.5
# Sources remembered for their burden alone, about 300 bytes each, for each service. One that is
# pushed out starts afresh, which whoever owns so many addresses can have anyway.
MAX_RESTING: Final = 1024


def grade_of(burden: float) -> int:
    """0 below one, 1 below two, 2 below four, and so on."""
    return int(burden).bit_length()


@dataclass(slots=True, eq=False)
class Source:
    name: str
    score: float = 0.0  # visitors who ended without a login
    tries: float = 0.0  # visitors who came and have not logged in
    visitors: int = 0
    waiting: int = 0  # of them, in line
    young: int = 0  # of them, with a place
    _settled: float = 0.0  # when `score` and `tries` were right

    @property
    def has_place(self) -> bool:
        return self.visitors > self.waiting

    def burden_at(self, now: float) -> float:
        """To a part in a hundred: asked for everybody whenever somebody comes."""
        if now - self._settled >= _STALE:
            self.settle(now)
        return self.score + self.tries

    def come(self, now: float) -> None:
        self.settle(now)
        self.tries += 1

    def log_in(self, now: float, *, came: float) -> None:
        """Whoever came then is no burden any more."""
        self.settle(now)
        self.tries = max(0.0, self.tries - 0.5 ** ((now - came) / TRY_HALF_LIFE))

    def fail(self, now: float) -> None:
        self.settle(now)
        self.score = min(WORST, self.score + 1)

    def heal(self, now: float) -> None:
        self.settle(now)
        self.score /= 2

    def settle(self, now: float) -> None:
        age, self._settled = now - self._settled, now
        if age:
            self.score *= 0.5 ** (age / HALF_LIFE)
            self.tries *= 0.5 ** (age / TRY_HALF_LIFE)


class Sources:
    """Those with visitors, and those with a burden."""

    def __init__(self, most_resting: int) -> None:
        self._most_resting = most_resting
        self._active: dict[str, Source] = {}
        self._resting: dict[str, Source] = {}  # without visitors; least recent first

    def __len__(self) -> int:
        return len(self._active) + len(self._resting)

    def of(self, host: str) -> Source:
        name = source_of(host)
        return self._active.get(name) or self._resting.get(name) or Source(name)

    def remember(self, source: Source, now: float) -> None:
        """Put `source` where it belongs; nowhere, if there is nothing to remember about it."""
        self._active.pop(source.name, None)
        self._resting.pop(source.name, None)
        if source.visitors:
            self._active[source.name] = source
        elif source.burden_at(now) >= _FORGOTTEN:
            self._resting[source.name] = source
            if len(self._resting) > self._most_resting:
                healed = min(self._resting.values(), key=lambda one: one.burden_at(now))
                del self._resting[healed.name]
