"""The penalty of each source of visitors: how many came lately and did not log in. Pure.

This is for one service what `PerSourcePenalties` is for OpenSSH's sshd (sshd_config(5)). A penalty
is the sum of two counts, each of which decays by its half-life:

    attempts    visitors that came and have not logged in; evicted ones stay counted
    failures    visitors that ended by themselves without a login
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# In seconds. A person whose connection was cut is back at one attempt by the next try; a bot that
# comes every ten seconds stays at nine.
ATTEMPT_HALF_LIFE: Final = 60.0
# In seconds. A person who mistyped is forgiven within minutes; a bot comes again sooner than that.
FAILURE_HALF_LIFE: Final = 600.0
# More failures count no further: after six half-lives, an hour, one of these is left.
MAX_FAILURES: Final = 64.0

# In so many seconds a penalty decays by less than a part in a hundred.
_STALE: Final = 0.5
# A lower penalty is no reason to remember a source.
_NEGLIGIBLE: Final = 0.5
# Sources of a service remembered only for their penalty, about 300 bytes each. A source that is
# forgotten starts afresh; an attacker with that many addresses gains nothing by it.
MAX_RESTING: Final = 1024


def penalty_level(penalty: float) -> int:
    """The scale on which penalties are compared: 0 below one, 1 below two, 2 below four, …"""
    return int(penalty).bit_length()


def remembered_penalty(record: SourceRecord, now: float) -> float:
    """What the record of a source without visitors weighs in a `SourceTable`."""
    penalty = record.penalty_at(now)
    return penalty if penalty >= _NEGLIGIBLE else 0.0


@dataclass(slots=True, eq=False)
class SourceRecord:
    source: str  # as `source_of` names it
    failures: float = 0.0
    attempts: float = 0.0
    visitors: int = 0  # here now, those in line included
    waiting: int = 0  # of these, in line
    unauthenticated: int = 0  # of these, with a place and not known to have logged in
    _updated: float = 0.0  # when `failures` and `attempts` were right

    @property
    def has_place(self) -> bool:
        return self.visitors > self.waiting

    def penalty_at(self, now: float) -> float:
        """To a part in a hundred: it is asked for each visitor whenever one comes."""
        if now - self._updated >= _STALE:
            self.decay(now)
        return self.failures + self.attempts

    def add_attempt(self, now: float) -> None:
        self.decay(now)
        self.attempts += 1

    def take_attempt_back(self, now: float, *, arrived: float) -> None:
        """The visitor that came at `arrived` no longer counts: it logged in, or never could."""
        self.decay(now)
        self.attempts = max(0.0, self.attempts - 0.5 ** ((now - arrived) / ATTEMPT_HALF_LIFE))

    def add_failure(self, now: float) -> None:
        self.decay(now)
        self.failures = min(MAX_FAILURES, self.failures + 1)

    def halve_failures(self, now: float) -> None:
        self.decay(now)
        self.failures /= 2

    def decay(self, now: float) -> None:
        age, self._updated = now - self._updated, now
        if age:
            self.failures *= 0.5 ** (age / FAILURE_HALF_LIFE)
            self.attempts *= 0.5 ** (age / ATTEMPT_HALF_LIFE)
