"""One stream's two directions, and when its slot is free.

Each direction ends in one of two ways, and the first end stands:

    sending    OPEN ──finish──▶ ENDING ──FIN sent──▶ ENDED ──FIN acked──▶ DONE
                 └──reset, either side──▶ DONE
    receiving  OPEN ──FIN came──▶ ENDED ──delivered──▶ DONE
                 └──reset, either side──▶ DONE

The rule behind the table: *a direction ended by FIN is finished; a later RESET discards nothing in
it*. What the application wrote before it finished is still delivered, in both these cases:

- we finish, then reset (our socket failed in the other direction): queued data and FIN go out
  first, RESET after them;
- the peer finished, then reset: we go on delivering what we hold, and only stop sending.

A stream's slot is free when both directions are DONE and nothing of it is queued.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import NamedTuple

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.session.window import ReceiveWindow, SendWindow
from protocol.wire.noise import Buffer


class Sent(NamedTuple):
    """A frame on its way: queued, then numbered and kept until acked."""

    frame: Buffer
    cost: int  # memory held, in bytes
    stream: Stream | None  # whose DATA, FIN or late RESET it is; None for control frames
    buffer: bytearray | None  # goes back to the pool on ack


class End(enum.IntEnum):
    """How far one direction has come."""

    OPEN = 0
    ENDING = 1  # sending only: FIN is queued
    ENDED = 2  # FIN sent, or received
    DONE = 3


class Stream:
    """State of one stream; `Session` drives it and owns the rules between streams."""

    __slots__ = (
        "_received",
        "_settled",
        "abandoned",
        "blocked",
        "credit",
        "deficit",
        "held",
        "id",
        "queue",
        "receiving",
        "scheduled",
        "sending",
        "window",
    )

    def __init__(self, stream: int, credit: SendWindow, window: ReceiveWindow) -> None:
        self.id = stream
        self.credit = credit
        self.window = window
        self.sending = End.OPEN
        self.receiving = End.OPEN
        self.abandoned = False  # receiving was ended by a RESET: what is under way is ignored
        self.queue: deque[Sent] = deque()  # frames not yet numbered
        self.held = 0  # bytes of the replay budget: queued and unacked
        self.scheduled = False  # the scheduler holds it
        self.deficit = 0
        self.blocked = False  # its reader waits for this stream's credit, or for its queue to drain
        self._received = 0  # payload bytes accepted
        self._settled = 0  # of those, returned as session credit

    def __repr__(self) -> str:
        return f"<Stream {self.id} {self.sending.name} {self.receiving.name}>"

    @property
    def free(self) -> bool:
        return self.sending is End.DONE and self.receiving is End.DONE and not self.queue

    # Sending

    def check_open_for_sending(self) -> None:
        if self.sending is not End.OPEN:
            raise LocalProtocolError(f"stream {self.id} is finished")

    def fin_queued(self) -> None:
        self.check_open_for_sending()
        self.sending = End.ENDING

    def fin_sent(self) -> None:
        if self.sending is End.ENDING:
            self.sending = End.ENDED

    def fin_acked(self) -> None:
        if self.sending is End.ENDED:
            self.sending = End.DONE

    # Receiving

    def accept(self, count: int) -> None:
        if self.receiving is not End.OPEN:
            raise RemoteProtocolError(f"data on stream {self.id} after its FIN")
        self.window.accept(count)
        self._received += count

    def settle(self, count: int) -> None:
        """`count` bytes were written to the local socket."""
        if count > self._received - self._settled:
            raise LocalProtocolError(f"stream {self.id} consumed more than it received")
        self._settled += count

    def settle_all(self) -> int:
        """Bytes received that nobody will write any more: their session credit returns at once."""
        left = self._received - self._settled
        self._settled = self._received
        return left

    def fin_came(self) -> None:
        if self.receiving is not End.OPEN:
            raise RemoteProtocolError(f"second FIN on stream {self.id}")
        self.receiving = End.ENDED

    def fin_delivered(self) -> None:
        if self.receiving is not End.ENDED:
            raise LocalProtocolError(f"stream {self.id} delivered a FIN that did not come")
        self.receiving = End.DONE
