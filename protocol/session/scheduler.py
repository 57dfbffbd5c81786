"""Which stream sends next: fq_codel's two lists (RFC 8290, section 4.2), without the codel.

    wakes ──▶ sparse ──quantum used, or empty──▶ bulk ──empty at its turn──▶ idle
                                                  ▲ └─quantum used─┐
                                                  └────────────────┘

A stream that wakes goes to `sparse` with one quantum and is served before all bulk. It becomes
sparse again only after its queue was empty at a turn in `bulk`, so a stream with a standing backlog
cannot buy priority by its low rate. Bulk is served by deficit round robin.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocol.session.stream import Stream


class Scheduler:
    """Holds the streams whose queue is not empty. `quantum` is in bytes of frame."""

    __slots__ = ("_bulk", "_sparse", "quantum")

    def __init__(self, quantum: int) -> None:
        self.quantum = quantum
        self._sparse: deque[Stream] = deque()
        self._bulk: deque[Stream] = deque()

    def wake(self, stream: Stream) -> None:
        """Note that `stream` has something queued; no effect on one already waiting its turn."""
        if not stream.scheduled:
            stream.scheduled = True
            stream.deficit = self.quantum
            self._sparse.append(stream)

    def next(self) -> Stream | None:
        """The stream whose first queued frame goes out now; charges it for that frame."""
        while True:
            turn = self._sparse or self._bulk
            if not turn:
                return None
            stream = turn[0]
            if not stream.queue:
                turn.popleft()
                if turn is self._sparse:
                    # Through bulk first: else a stream could alternate empty and full for priority.
                    self._bulk.append(stream)
                else:
                    stream.scheduled = False
            elif stream.deficit <= 0:
                turn.popleft()
                stream.deficit += self.quantum
                self._bulk.append(stream)
            else:
                stream.deficit -= len(stream.queue[0].frame)
                return stream
