"""A cut at every byte of an exchange over real records, then a resume with fresh keys.

The same scripted exchange runs once for each place where a byte may be the last one to arrive, in
each direction. What is under way the other way is lost with it, or arrives first: both are tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from protocol.errors import RemoteProtocolError, ResetCode
from protocol.wire.noise import CipherState, Suite
from protocol.wire.record import MAX_RECORD, RECORD_OVERHEAD, Opener, Sealer, lazy_area
from tests.support.pair import Pair, PairSide, Profile

PROFILE = Profile(
    streams=8, stream_window=120, window_limit=240, session_window=400, replay_limit=16_000
)
# Made once: nothing that is opened outlives its handling.
PLAINTEXT = lazy_area(8 * MAX_RECORD)
ROOMY = 10**9


@dataclass
class Pipe:
    """One direction of one link: its keys, and bytes under way."""

    sealer: Sealer
    opener: Opener
    bytes: bytearray = field(default_factory=bytearray)


def pipe(key: int) -> Pipe:
    secret = key.to_bytes(32, "big")
    # Rekeys are frequent so that cuts meet them.
    return Pipe(
        Sealer(CipherState(Suite.AESGCM, secret), rekey_interval=5),
        Opener(
            CipherState(Suite.AESGCM, secret),
            capacity=MAX_RECORD,
            plaintext=PLAINTEXT,
            rekey_interval=5,
        ),
    )


class Wired(Pair):
    """A pair whose link carries records; it breaks when `limit` bytes reached one side."""

    def __init__(self, to_agent: bool, limit: int, *, rest_arrives: bool) -> None:
        self.keys = 0
        self.pipes: dict[str, Pipe] = {}
        self.cut_side = "agent" if to_agent else "relay"
        self.left = limit
        self.rest_arrives = rest_arrives
        self.was_cut = False
        self.counted = {"relay": 0, "agent": 0}
        super().__init__(PROFILE, PROFILE)

    def resume(self) -> None:
        for side in ("relay", "agent"):
            self.keys += 1
            self.pipes[side] = pipe(self.keys)
        super().resume()

    def transfer(self) -> None:
        """Carry all that is under way, in both directions, until rest."""
        moved = True
        while moved:
            moved = False
            for to in self.sides:
                self._seal(self.other(to), self.pipes[to.name])
                moved |= self._carry(to)
                if self.left == 0 and not self.was_cut:
                    self._break()
                    moved = True
            if not moved and any(s.session._acks.deadline < ROOMY for s in self.sides):
                self.tick(0.06)
                moved = True

    def _seal(self, sender: PairSide, into: Pipe) -> None:
        while sender.wire:
            frame = sender.wire.popleft()
            sender.wire_bytes -= len(frame)
            record = bytearray(len(frame) + RECORD_OVERHEAD)
            into.sealer.seal_into(frame, memoryview(record))
            into.bytes += record

    def _carry(self, to: PairSide) -> bool:
        way = self.pipes[to.name]
        count = len(way.bytes)
        if to.name == self.cut_side and not self.was_cut:
            count = min(count, self.left)
            self.left -= count
        self._arrive(to, way, count)
        return count > 0

    def _arrive(self, to: PairSide, way: Pipe, count: int) -> None:
        self.counted[to.name] += count
        data = memoryview(bytes(way.bytes[:count]))
        del way.bytes[:count]
        while data:
            space = way.opener.space()
            size = min(len(space), len(data))
            space[:size] = data[:size]
            way.opener.received(size)
            data = data[size:]
            to.session.heard(self.now)
            while (frame := way.opener.next_frame()) is not None:
                event = to.session.receive(frame, self.now)
                if event is not None:
                    self.on_event(to, event)
        self.serve(to)

    def _break(self) -> None:
        self.was_cut = True
        if self.rest_arrives:
            other = self.relay if self.cut_side == "agent" else self.agent
            way = self.pipes[other.name]
            self._arrive(other, way, len(way.bytes))
        for side in self.sides:
            side.wire.clear()
            side.wire_bytes = 0
        self.check()
        self.resume()
        self.check()


def exchange(pair: Wired) -> Iterator[None]:
    """Each step is something an owner does; the link runs in between."""
    relay, agent = pair.sides
    pair.publish()
    yield
    relay.session.published(1, 11111)
    pair.serve(relay)
    first = pair.open(1)
    assert first is not None
    pair.write(relay, first, 30)
    yield
    # Both write first, more than the window.
    pair.write(agent, first, 200)
    pair.write(relay, first, 150)
    yield
    second = pair.open(1)
    assert second is not None
    yield
    pair.read(agent, first, 100)
    pair.write(agent, second, 40)
    pair.finish(agent, second)
    yield
    # Finished, then reset, while its last bytes wait.
    if not agent.halves[second].over:
        pair.reset(agent, second)
    pair.read(relay, first, 150)
    yield
    third = pair.open(1)
    assert third is not None
    pair.write(relay, third, 60)
    pair.reset(relay, third, ResetCode.ABORTED)
    yield
    agent.session.unpublish(1)
    pair.serve(agent)
    fourth = pair.open(1)
    assert fourth is not None
    pair.write(relay, fourth, 20)
    yield
    for side in pair.sides:
        pair.finish(side, first)
    agent.session.probe(pair.now)
    pair.serve(agent)
    yield


def run(pair: Wired) -> None:
    for _ in exchange(pair):
        pair.transfer()
    pair.transfer()
    # A cut leaves things to do; then everything is read, and comes to its end.
    for _ in range(50):
        waiting = [
            (side, half) for side in pair.sides for half in side.halves.values() if half.unread
        ]
        if not waiting:
            break
        for side, half in waiting:
            pair.read(side, half.stream, 10**6)
        pair.transfer()
    relay, agent = pair.sides
    for side in pair.sides:
        pair.finish(side, 1)
    pair.transfer()
    pair.check()
    for stream in relay.halves:
        pair.check_ended(stream)
    assert agent.halves[1].delivered == 180
    assert relay.halves[1].delivered == 200
    assert relay.halves[3].delivered == 40
    assert relay.halves[7].reset_came == ResetCode.SERVICE_GONE
    pair.check_at_rest()


def lengths() -> dict[str, int]:
    """Bytes that reach each side if nothing is cut."""
    pair = Wired(True, ROOMY, rest_arrives=False)
    run(pair)
    assert not pair.was_cut
    return pair.counted


@pytest.mark.parametrize("to_agent", [True, False], ids=["to agent", "to relay"])
@pytest.mark.parametrize("rest_arrives", [True, False], ids=["rest arrives", "rest lost"])
def test_a_cut_at_every_byte(to_agent: bool, rest_arrives: bool) -> None:
    total = lengths()["agent" if to_agent else "relay"]
    assert 500 < total < 5000
    for limit in range(1, total):
        pair = Wired(to_agent, limit, rest_arrives=rest_arrives)
        try:
            run(pair)
        except BaseException:
            print(f"cut after {limit} of {total} bytes")
            raise
        assert pair.was_cut


def test_the_old_keys_open_nothing_on_the_new_link() -> None:
    old, new = pipe(1), pipe(2)
    record = bytearray(5 + RECORD_OVERHEAD)
    old.sealer.seal_into(b"\x08\0\0\0\1", memoryview(record))
    new.opener.space()[: len(record)] = record
    new.opener.received(len(record))
    with pytest.raises(RemoteProtocolError):
        new.opener.next_frame()
