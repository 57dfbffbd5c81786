"""How long to wait before the next attempt to attach.

The first attempt after a success is immediate: most cuts are short, and a shell hangs meanwhile.
Later delays double from a quarter of a second, with *full* jitter: each is drawn between zero and
its limit. So two thousand agents whose relay has restarted do not come back in one instant.

No delay is longer than the absence before it: a relay that was away for two seconds has its agents
back two seconds after its return, whatever was drawn.
"""

from __future__ import annotations

from random import Random
from typing import Final

# Long enough to spare a relay that answers with a refusal, short enough not to be felt.
FIRST_STEP: Final = 0.25
# Somebody waits at an open shell; the relay keeps its session for minutes.
CAP_WITH_STREAMS: Final = 5.0
# The relay holds a new visitor unread for 10 s: within them one attempt must start and succeed.
CAP_WITHOUT_STREAMS: Final = 8.0


class Backoff:
    """Delays in seconds, of at most `cap`, which may be set as streams come and go."""

    __slots__ = ("_random", "_step", "cap")

    def __init__(self, rng: Random, *, cap: float = CAP_WITHOUT_STREAMS) -> None:
        self._random = rng
        self._step = 0.0
        self.cap = cap

    def next_delay(self, *, away: float) -> float:
        """`away` is how many seconds ago the last link was lost that had lasted."""
        ceiling = min(self._step, self.cap, max(away, FIRST_STEP))
        # The step stops at the larger cap, so that it does not grow without end.
        self._step = min(self._step * 2, CAP_WITHOUT_STREAMS) if self._step else FIRST_STEP
        return self._random.uniform(0.0, ceiling)

    def reset(self) -> None:
        """A link has lasted: the next attempt is a first one again."""
        self._step = 0.0
