"""What a session has only while a link carries it: liveness, and frames that die with the link."""

from __future__ import annotations

from protocol.session.acks import Acks
from protocol.session.liveness import Liveness, Verdict
from protocol.wire import frame as wire
from protocol.wire.frame import CloseCode, FrameType


class LinkState:
    """Made anew for each link."""

    __slots__ = ("_acks", "closed", "liveness", "nearer", "pending", "unacked_since")

    def __init__(self, acks: Acks, now: float, *, pings_first: bool) -> None:
        self.liveness = Liveness(now, pings_first=pings_first)
        self._acks = acks
        # Whether a deadline may be nearer than when the timer was set: sending asks for every
        # record, and computing it each time took a tenth of a round trip.
        self.nearer = True
        self.closed = False  # the goodbye is said; nothing follows it
        self.unacked_since: float | None = None
        # PING or PONG → its stamp, CLOSE → its code. One of a kind: the newest says all, and a peer
        # whose PINGs come faster than their answers go out makes us hold nothing.
        self.pending: dict[FrameType, int] = {}
        acks.settle()  # the handshake told the peer

    # Sending

    def next_frame(self) -> bytes | None:
        """The next link-local frame; made when it goes out, so that acks never run backwards."""
        if self.closed:
            return None
        if self.pending:
            return self._next_pending()
        if self._acks.due:
            self._acks.settle()
            return wire.ack(self._acks.received)
        return None

    def close(self, code: CloseCode) -> None:
        self.pending[FrameType.CLOSE] = code

    def pong(self, stamp: int) -> None:
        self.pending[FrameType.PONG] = stamp

    def probe(self, now: float) -> None:
        """Ask for a sign of life at once, unless one is being waited for."""
        if not self.liveness.questioned:
            self.liveness.question(now)
            self._ping(now)
            self.nearer = True

    def _ping(self, now: float) -> None:
        self.pending[FrameType.PING] = self.liveness.stamp(now)

    def _next_pending(self) -> bytes:
        kind, value = self.pending.popitem()
        if kind is FrameType.CLOSE:
            self.closed = True
            self.pending.clear()
            return wire.close(CloseCode(value))
        self._acks.settle()
        encode = wire.ping if kind is FrameType.PING else wire.pong
        return encode(self._acks.received, value)

    # Time

    def sequenced_sent(self, now: float) -> None:
        if self.unacked_since is None:
            self.unacked_since = now
            self.nearer = True

    def acked(self, now: float, *, more: bool) -> None:
        """The peer acked something new; with `more`, not all."""
        self.unacked_since = now if more else None

    def deadline(self, *, streams: bool) -> float:
        self.nearer = False
        silence = self.liveness.deadline(streams=streams, unacked_since=self.unacked_since)
        return min(silence, self._acks.deadline)

    def handle_deadline(self, now: float, *, streams: bool) -> Verdict:
        self._acks.check(now)
        asked = self.liveness.questioned
        verdict = self.liveness.judge(now, streams=streams, unacked_since=self.unacked_since)
        if verdict is Verdict.PING or (verdict is Verdict.SUSPECT and not asked):
            self._ping(now)
        return verdict
