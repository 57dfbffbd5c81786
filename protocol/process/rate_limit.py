"""A limit for one kind of log line that strangers can cause: so many a period, then a count."""

from __future__ import annotations

import math
from typing import Final

# A person reads ten; a minute apart, a flood is a handful of kilobytes a minute.
LINES: Final = 10
PERIOD: Final = 60.0


class RateLimit:
    def __init__(self, *, lines: int = LINES, period: float = PERIOD) -> None:
        self._lines = lines
        self._period = period
        self._shown = 0
        self.ends = -math.inf  # when the current period does
        self.suppressed = 0  # lines held back and not yet told of

    def allows(self, now: float) -> bool:
        """Whether one more line may be written; otherwise it is counted."""
        if now >= self.ends:
            self.ends = now + self._period
            self._shown = 0
        if self._shown < self._lines:
            self._shown += 1
            return True
        self.suppressed += 1
        return False

    def take_suppressed(self) -> int:
        """How many were held back since this was last asked."""
        count, self.suppressed = self.suppressed, 0
        return count
