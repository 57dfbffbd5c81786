"""Sent frames, kept as plaintext until the peer acks them.

Frames are numbered from 0, one count per direction. `base` is the number of the oldest frame kept,
`cursor` how many of those kept went out on the current link:

    acked ───────▶│ base ………… cursor │ ………… end │ ───▶ not yet numbered
                    kept, on the link   kept, to be sent again after a resume

A resume sets `base` to the peer's received count and `cursor` to 0; every frame is then sealed
afresh under the new link's keys, so no key and nonce ever meet twice.

Budgets count memory held, not payload. The budget holds queued *and* unacked DATA, since both are
memory; a stream's share is counted in `Stream.held`. All other frames are counted apart (outbox).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from protocol.errors import RemoteProtocolError, SessionLost
from protocol.session.stream import Sent
from protocol.wire.noise import Buffer

# What CPython needs around a kept frame: the object, its deque slot, the view. Measured, rounded
# up.
FRAME_OVERHEAD: Final = 256

# A stream may hold this much whatever bulk does, so that a keystroke never waits for replay room.
STREAM_RESERVE: Final = 16 * 1024
# The part of a budget that bulk never takes: 2 MiB of a relay's 16, the reserve of 128 streams. Set
# aside before they open, since bulk may hold all the rest by then.
SET_ASIDE: Final = 8


class ReplayCap:
    """Memory that all sessions of a process may hold together, in bytes."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0


@dataclass(slots=True)
class Budget:
    """What one session holds for replay, under its own limit and the process's cap."""

    limit: int
    cap: ReplayCap
    held: int = 0

    def take(self, cost: int) -> None:
        self.held += cost
        self.cap.held += cost

    def give(self, cost: int) -> None:
        self.held -= cost
        self.cap.held -= cost

    @property
    def shared(self) -> int:
        """Bytes that bulk may add; below 0 while streams use what was set aside for them."""
        cap = self.cap
        own = self.limit - self.held - self.limit // SET_ASIDE
        return min(own, cap.limit - cap.held - cap.limit // SET_ASIDE)

    def room(self, held_by_stream: int, streams: int, *, reserve_only: bool = False) -> int:
        """Bytes that a stream holding `held_by_stream` may add now.

        Bulk leaves an eighth alone; of that each of `streams` open streams may take its share.
        """
        reserve = min(STREAM_RESERVE, self.limit // (SET_ASIDE * max(streams, 1)))
        room = max(reserve - held_by_stream, 0)
        if not reserve_only:
            room = max(room, self.shared)
        return min(room, self.limit - self.held, self.cap.limit - self.cap.held)


class Replay:
    __slots__ = ("_kept", "base", "cursor")

    def __init__(self) -> None:
        self._kept: deque[Sent] = deque()
        self.base = 0
        self.cursor = 0

    @property
    def again(self) -> int:
        """Frames kept that the link has not seen: to be sent before anything new."""
        return len(self._kept) - self.cursor

    @property
    def end(self) -> int:
        """The number the next new frame gets."""
        return self.base + len(self._kept)

    @property
    def unacked(self) -> bool:
        """Whether something went out on this link that the peer has not acked."""
        return self.cursor > 0

    def add(self, sent: Sent) -> None:
        """Number and keep a frame that goes out now; nothing may wait to be sent again."""
        self._kept.append(sent)
        self.cursor += 1

    def next_again(self) -> Buffer:
        """The next frame the new link has not seen; only while there is `again`."""
        # After a resume this walks the deque once; indexing near its ends is fast.
        frame = self._kept[self.cursor].frame
        self.cursor += 1
        return frame

    def ack(self, received: int) -> list[Sent]:
        """Drop what the peer has; returns the dropped, oldest first."""
        count = received - self.base
        if not 0 <= count <= self.cursor:
            raise RemoteProtocolError(
                f"ack of {received} outside {self.base}…{self.base + self.cursor}"
            )
        return self._drop(count)

    def resume(self, received: int) -> list[Sent]:
        """Continue on a new link whose peer has `received` frames.

        Raises SessionLost if that is not between what was acked and what was ever sent.
        """
        count = received - self.base
        if not 0 <= count <= len(self._kept):
            raise SessionLost(f"peer claims {received} frames outside {self.base}…{self.end}")
        dropped = self._drop(count)
        self.cursor = 0
        return dropped

    def discard_all(self) -> list[Sent]:
        self.cursor = len(self._kept)
        return self._drop(len(self._kept))

    def _drop(self, count: int) -> list[Sent]:
        kept = self._kept
        dropped = [kept.popleft() for _ in range(count)]
        self.base += count
        self.cursor -= count
        return dropped
