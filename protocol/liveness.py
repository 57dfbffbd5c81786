"""Is the link alive? Pure timers; the session asks, the transport acts.

Any received byte is life. Silence is questioned by a PING, and a PING without any byte after it for
`DEAD_AFTER` is death:

    heard ──silence──▶ PING ──silence──▶ DEAD
      ▲                  │
      └───any byte───────┘

A saturated or very lossy path is not a dead one: while the kernel sees its acks advance
(`progress`), death waits up to `PROGRESS_GRACE`. A deadline handled much too late (the process was
stopped, the machine slept) judges nothing: sockets may be full of unread life.
"""

from __future__ import annotations

import enum
from typing import Final

# Silence before a PING. With streams open a user waits; without, 20 s keeps NAT entries alive (the
# shortest common timeout is 30 s) at about 15 bytes a second.
PING_AFTER_BUSY: Final = 4.0
PING_AFTER_IDLE: Final = 20.0
# From PING to death; 4 RTTs leave room for one lost segment and its retransmission.
DEAD_AFTER: Final = 3.0
DEAD_RTTS: Final = 4
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
    SUSPECT = enum.auto()  # send one now, and look for another link meanwhile
    DEAD = enum.auto()


class Liveness:
    """Judges one link; made anew for each."""

    __slots__ = ("_heard", "_pinged", "_progress", "min_rtt", "rtt")

    def __init__(self, now: float) -> None:
        self._heard = now
        self._pinged: float | None = None  # when the unanswered PING was sent
        self._progress = now  # when the kernel last saw an ack advance
        self.rtt = 0.0  # smoothed, seconds (RFC 6298's 1/8); 0 until measured
        self.min_rtt = 0.0

    def heard(self, now: float) -> None:
        self._heard = now
        self._pinged = None

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
            dead = self._pinged + max(DEAD_AFTER, DEAD_RTTS * self.rtt)
            if self._progress > self._pinged:
                dead = max(dead, self._progress + max(DEAD_AFTER, DEAD_RTTS * self.rtt))
                return min(dead, self._pinged + PROGRESS_GRACE)
            return dead
        silence = self._heard + (PING_AFTER_BUSY if streams else PING_AFTER_IDLE)
        if unacked_since is not None:
            return min(silence, self._suspicion(unacked_since))
        return silence

    def judge(self, now: float, *, streams: bool, unacked_since: float | None) -> Verdict:
        due = self.deadline(streams=streams, unacked_since=unacked_since)
        if now < due:
            return Verdict.ALIVE
        if self._pinged is not None:
            if now - due > LATE:
                # We did not run: ask again, judge by what the sockets hold now.
                self._pinged = now
                return Verdict.PING
            return Verdict.DEAD
        self._pinged = now
        if (
            unacked_since is not None
            and now >= self._suspicion(unacked_since)
            and now - due <= LATE
        ):
            return Verdict.SUSPECT
        return Verdict.PING

    def question(self, now: float) -> None:
        """The caller sends a PING now."""
        if self._pinged is None:
            self._pinged = now

    @property
    def questioned(self) -> bool:
        """Whether a PING is unanswered."""
        return self._pinged is not None

    def _suspicion(self, unacked_since: float) -> float:
        return max(self._heard, unacked_since) + max(SUSPECT_AFTER, SUSPECT_RTTS * self.rtt)
