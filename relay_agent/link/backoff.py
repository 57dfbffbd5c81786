"""How long to wait before the next attempt to attach.

The first attempt after a success is immediate: most cuts are short, and a shell hangs meanwhile.
Later ones double from a quarter of a second with *full* jitter, so that two thousand agents whose
relay restarted do not come back in one instant.

No delay is longer than the absence before it, so that a relay that was away for two seconds has
its agents back two seconds after its return, however the dice fell.
"""

from __future__ import annotations

from random import Random
from typing import Final

# Long enough not to hammer a relay that answers with a refusal, short enough not to be felt.
FIRST_STEP: Final = 0.25
# A shell is open and somebody stares at it; the relay keeps its session for minutes.
CAP_WITH_STREAMS: Final = 5.0
# The relay holds a new visitor unread for 10 s: within them one attempt must start and succeed.
CAP_WITHOUT_STREAMS: Final = 8.0


class Backoff:
    """Delays in seconds. `cap` may be set at any time, as streams come and go."""

    __slots__ = ("_random", "_step", "cap")

    def __init__(self, rng: Random, *, cap: float = CAP_WITHOUT_STREAMS) -> None:
        self._random = rng
        self._step = 0.0
        self.cap = cap

    def next_delay(self, *, away: float) -> float:
        """`away` is how many seconds ago the last link that deserved the name was lost."""
        ceiling = min(self._step, self.cap, max(away, FIRST_STEP))
        # The step stops at the larger cap, so that it never grows without end.
        self._step = min(self._step * 2, CAP_WITHOUT_STREAMS) if self._step else FIRST_STEP
        return self._random.uniform(0.0, ceiling)

    def reset(self) -> None:
        """The relay accepted a link: the next loss is a new one."""
        self._step = 0.0
