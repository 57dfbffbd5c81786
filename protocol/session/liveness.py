"""Is the link alive? Pure timers; the session asks, the transport acts.

Any received byte is life. Silence is questioned by a PING, and a PING without any byte after it for
`DEAD_AFTER` is death:

    heard ──silence──▶ PING ──a second──▶ SUSPECT ──silence──▶ DEAD
      ▲                  │                   │
      └──any byte────────┴───────────────────┘

Sent frames that stay unacked lead to SUSPECT at once: another link is to be looked for. Of the two
ends one pings first (`side`); its PING is the sign of life that spares the other end a PING.

A saturated or very lossy path is not a dead one: while the kernel sees its acks advance
(`progress`), there is no doubt, and death waits up to `PROGRESS_GRACE`. A link that takes seconds
for one record would else be given up for another again and again, and the record never arrive.
A deadline handled much too late (the process was stopped, the machine slept) judges nothing:
sockets may be full of unread life.
"""

from __future__ import annotations

import enum
from typing import Final

# Silence before a PING. With streams open a user waits; without, 20 s keeps NAT entries alive (the
# shortest common timeout is 30 s) at about 15 bytes a second.
PING_AFTER_BUSY: Final = 4.0
PING_AFTER_IDLE: Final = 20.0
# How much longer the end that does not ping first waits: a round trip over any path, so that one
# PING and its PONG are signs of life for both ends.
SECOND_PING_DELAY: Final = 1.0
# From PING to death; 4 RTTs leave room for one lost segment and its retransmission.
DEAD_AFTER: Final = 3.0
DEAD_RTTS: Final = 4
# From PING to looking for another link, which is then at hand when this one is found dead.
DOUBT_AFTER: Final = 1.0
DOUBT_RTTS: Final = 2
# Unacked data with nothing heard is questioned sooner: TCP should have answered within an RTT.
SUSPECT_AFTER: Final = 2.0
SUSPECT_RTTS: Final = 6
# TCP alone pauses up to 9 s at 20 % loss; three such pauses are a link nobody can use.
PROGRESS_GRACE: Final = 30.0
# A timer this late means the process did not run.
LATE: Final = 1.0
# A longer "round trip" is a stamp that we did not send.
_LONGEST_RTT: Final = 60.0


class Verdict(enum.Enum):
    ALIVE = enum.auto()
    PING = enum.auto()  # send one now
    SUSPECT = enum.auto()  # the same, unless one is unanswered; and look for another link
    DEAD = enum.auto()


class Liveness:
    """Judges one link; made anew for each."""

    __slots__ = ("_heard", "_ping_delay", "_pinged", "_progress", "_suspected", "min_rtt", "rtt")

    def __init__(self, now: float, *, pings_first: bool) -> None:
        self._ping_delay = 0.0 if pings_first else SECOND_PING_DELAY
        self._heard = now
        self._suspected = False  # since it was last heard
        self._pinged: float | None = None  # when the unanswered PING was sent
        self._progress = now  # when the kernel last saw an ack advance
        self.rtt = 0.0  # smoothed, seconds (RFC 6298's 1/8); 0 until measured
        self.min_rtt = 0.0

    def heard(self, now: float) -> None:
        self._heard = now
        self._pinged = None
        self._suspected = False

    def measured(self, min_rtt: float) -> None:
        """The kernel's own minimum, in seconds: a side that only listens asks no questions."""
        if min_rtt > 0:
            self.min_rtt = min_rtt

    def progress(self, now: float) -> None:
        """The kernel's TCP saw the peer ack something new."""
        self._progress = now

    def stamp(self, now: float) -> int:
        """What a PING sent now carries, and its PONG brings back: microseconds."""
        return max(0, int(now * 1_000_000))

    def answered(self, stamp: int, now: float) -> None:
        """A PONG came with the stamp of its PING."""
        rtt = now - stamp / 1_000_000
        if not 0 <= rtt < _LONGEST_RTT:
            return
        self.rtt = rtt if self.rtt == 0 else self.rtt + (rtt - self.rtt) / 8
        self.min_rtt = rtt if self.min_rtt == 0 else min(self.min_rtt, rtt)

    def deadline(self, *, streams: bool, unacked_since: float | None) -> float:
        """When `judge` wants to be called, absent further news."""
        if self._pinged is not None:
            dead = self._death(self._pinged)
            if self._suspected:
                return dead
            doubt = max(DOUBT_AFTER, DOUBT_RTTS * self.rtt)
            return min(dead, max(self._pinged, self._progress) + doubt)
        silence = PING_AFTER_BUSY if streams else PING_AFTER_IDLE
        asking = self._heard + silence + self._ping_delay
        if unacked_since is not None:
            return min(asking, self._suspicion(unacked_since))
        return asking

    def judge(self, now: float, *, streams: bool, unacked_since: float | None) -> Verdict:
        due = self.deadline(streams=streams, unacked_since=unacked_since)
        if now < due:
            return Verdict.ALIVE
        late = now - due > LATE
        if self._pinged is None or late:
            # After a time in which we did not run, by what the sockets hold now.
            self._pinged = now
            unacked = unacked_since is not None and now >= self._suspicion(unacked_since)
            self._suspected = unacked and not late
        elif now >= self._death(self._pinged):
            return Verdict.DEAD
        else:
            self._suspected = True
        return Verdict.SUSPECT if self._suspected else Verdict.PING

    def _death(self, pinged: float) -> float:
        patience = max(DEAD_AFTER, DEAD_RTTS * self.rtt)
        if self._progress <= pinged:
            return pinged + patience
        return min(self._progress + patience, pinged + PROGRESS_GRACE)

    def question(self, now: float) -> None:
        """The caller sends a PING now."""
        if self._pinged is None:
            self._pinged = now

    @property
    def suspected(self) -> bool:
        """Whether a PING has been unanswered for so long that another link is to be looked for."""
        return self._suspected

    @property
    def questioned(self) -> bool:
        """Whether a PING is unanswered."""
        return self._pinged is not None

    def _suspicion(self, unacked_since: float) -> float:
        quiet_since = max(self._heard, unacked_since, self._progress)
        return quiet_since + max(SUSPECT_AFTER, SUSPECT_RTTS * self.rtt)
