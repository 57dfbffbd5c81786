"""Readers of local sockets around one intake: whatever comes between, none sleeps for ever.

A reader asks when its socket has something, and then only when it was called. `take_ready` is asked
where the transport asks it and nowhere else: after a reader has sent, after the link was read, when
a stream is gone. At the end all is acked and all credit returned, and who then still has something
to say was forgotten.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocol.session.outbox import Outbox
from protocol.session.replay import Budget, ReplayCap
from protocol.session.send_admission import BURST_FRAMES, SendAdmission
from protocol.session.stream import Stream
from protocol.session.window import ReceiveWindow, SendWindow
from protocol.wire.buffers import BufferPool
from protocol.wire.frame import HEADER_SIZE, MAX_PAYLOAD
from tests.support.models import MODEL

KIB = 1024
# So small that a few readers fill it; the second has room for bursts.
limits = st.sampled_from([64 * KIB, 2048 * KIB])
STREAM_WINDOW = 1024 * KIB

readers = st.integers(0, 7)
sizes = st.one_of(st.integers(1, 300), st.just(20 * KIB), st.integers(1, 1024 * KIB))


@dataclass
class Reader:
    state: Stream
    left: int = 0  # bytes that its socket has
    asleep: bool = False  # until it is called
    called: bool = False  # and yet to run

    @property
    def id(self) -> int:
        return self.state.id


class IntakeModel(RuleBasedStateMachine):
    @initialize(
        count=st.integers(4, 8),
        limit=limits,
        window=limits,
        record=st.sampled_from([4 * KIB, MAX_PAYLOAD]),
        data=st.data(),
    )
    def begin(self, count: int, limit: int, window: int, record: int, data: st.DataObject) -> None:
        """All have something to say at once."""
        self.outbox = Outbox(budget=Budget(limit, ReplayCap(2 * limit)), pool=BufferPool())
        self.admission = SendAdmission(self.outbox, window)
        self.admission.attached = True
        self.admission.record_size = record
        self.readers = {
            number: Reader(Stream(number, SendWindow(STREAM_WINDOW), ReceiveWindow(1)))
            for number in range(1, 2 * count, 2)
        }
        self.full = False  # the link's socket
        self.unread: deque[tuple[Stream, int]] = deque()  # sent, and not yet written by the peer
        for index in range(count):
            self.say(index, data.draw(sizes))

    def pick(self, index: int) -> Reader | None:
        some = list(self.readers.values())
        return some[index % len(some)] if some else None

    def flush(self) -> None:
        while not self.full and (state := self.outbox.scheduler.next()) is not None:
            sent = state.queue.popleft()
            self.outbox.replay.add(sent)
            self.unread.append((state, len(sent.frame) - HEADER_SIZE))
            self.admission.unblock(state)
        for number in self.admission.take_ready():
            reader = self.readers.get(number)
            if reader is not None:
                assert reader.asleep, "called, and not asleep"
                reader.called = True

    def run_reader(self, reader: Reader) -> None:
        """As a splice does."""
        reader.asleep = reader.called = False
        frames = 1
        while reader.left:
            allowance = self.admission.allowance(reader.state, len(self.readers), frames)
            if not allowance:
                reader.asleep = True
                return
            count = min(allowance, reader.left)
            buffers = [
                bytearray(HEADER_SIZE + MAX_PAYLOAD) for _ in range(-(-count // MAX_PAYLOAD))
            ]
            self.admission.queue(reader.state, buffers, count)
            reader.left -= count
            self.flush()
            frames = BURST_FRAMES

    @rule(index=readers, count=sizes)
    def say(self, index: int, count: int) -> None:
        reader = self.pick(index)
        if reader is not None:
            reader.left += count
            if not reader.asleep:
                self.run_reader(reader)

    @rule(index=readers)
    def say_nothing_more(self, index: int) -> None:
        """What is asleep may find, when it is called, that its socket has nothing."""
        reader = self.pick(index)
        if reader is not None and reader.asleep:
            reader.left = 0

    @rule(count=st.integers(1, 6))
    def run_called(self, count: int) -> None:
        for reader in [one for one in self.readers.values() if one.called][:count]:
            # It asks before it looks whether there is something.
            if not reader.left:
                reader.asleep = reader.called = False
                if not self.admission.allowance(reader.state, len(self.readers), 1):
                    reader.asleep = True
            else:
                self.run_reader(reader)

    @rule(count=st.integers(1, 40))
    def ack(self, count: int) -> None:
        replay = self.outbox.replay
        if replay.unacked:
            self.outbox.ack(min(replay.base + count, replay.end))
            self.flush()

    @rule(count=st.integers(1, 40))
    def write(self, count: int) -> None:
        """The peer writes so many frames, and tells at once."""
        some = [self.unread.popleft() for _ in range(min(count, len(self.unread)))]
        for state, size in some:
            self.admission.credit.grant(size)
            state.credit.grant(size)
            self.admission.unblock(state)
        if some:
            self.flush()

    @rule(full=st.booleans())
    def fill(self, full: bool) -> None:
        """The link's socket; only once there is room again the session is asked for more."""
        self.full = full
        if not full:
            self.flush()

    @rule(attached=st.booleans())
    def attach(self, attached: bool) -> None:
        self.admission.attached = attached
        self.full = not attached
        if not attached:
            for reader in self.readers.values():
                self.admission.unblock(reader.state)
        self.flush()

    @rule(size=st.sampled_from([2 * KIB, 16 * KIB, MAX_PAYLOAD, MAX_PAYLOAD]))
    def adapt_record_size(self, size: int) -> None:
        self.admission.record_size = size

    @rule(index=readers)
    def leave(self, index: int) -> None:
        reader = self.pick(index)
        if reader is not None:
            self.admission.abandon(reader.state)
            del self.readers[reader.id]
            self.flush()

    @invariant()
    def bounds_hold(self) -> None:
        if hasattr(self, "outbox"):
            assert 0 <= self.outbox.budget.held <= self.outbox.budget.limit
            assert self.admission.credit.credit >= 0

    def teardown(self) -> None:
        if not hasattr(self, "outbox"):
            return
        self.admission.attached = True
        self.full = False
        self.flush()
        while self.outbox.replay.unacked or self.unread or self.any_called():
            self.run_called(1)
            self.write(1)
            self.ack(1)
        for reader in self.readers.values():
            assert not reader.asleep, f"{reader.id} was forgotten with {reader.left} bytes to say"
            assert not reader.left

    def any_called(self) -> bool:
        return any(reader.called for reader in self.readers.values())


TestIntake = IntakeModel.TestCase
TestIntake.settings = settings(MODEL, stateful_step_count=40)
