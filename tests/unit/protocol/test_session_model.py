"""Two sessions over a link that is cut, stalled and resumed at will.

After every step the books are compared with what is held, each byte that arrives with what was
written there; at the end the link heals and everything must come to its end.

    HYPOTHESIS_PROFILE=long pytest tests/unit/protocol/test_session_model.py
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.protocol.pair import LARGE, SMALL, Half, Pair, Profile, Side

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
MODEL = settings(
    # The default run repeats itself, so that a change cannot fail by another's bad luck; the long
    # one explores.
    derandomize=not LONG,
    max_examples=3000 if LONG else 250,
    stateful_step_count=120 if LONG else 50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

side_of = st.booleans()
choice = st.integers(0, 7)
few = st.integers(0, 6)


class SessionModel(RuleBasedStateMachine):
    profile: Profile
    sizes: st.SearchStrategy[int]

    @initialize()
    def begin(self) -> None:
        self.pair = Pair(self.profile, self.profile)
        self.publications: list[int] = [self.pair.publish()]
        self.ever: list[int] = []  # streams the relay opened

    def side(self, relay: bool) -> Side:
        return self.pair.relay if relay else self.pair.agent

    def pick(self, side: Side, index: int) -> Half | None:
        live = [half for half in side.halves.values() if not half.over]
        return live[index % len(live)] if live else None

    # Streams

    @rule(index=choice)
    def open(self, index: int) -> None:
        asked = sorted(self.pair.relay.publications)
        if asked:
            stream = self.pair.open(asked[index % len(asked)])
            if stream is None:
                assert self.pair.relay.session.open_streams == self.profile.streams
            else:
                self.ever.append(stream)

    @rule(relay=side_of, index=choice, data=st.data())
    def write(self, relay: bool, index: int, data: st.DataObject) -> None:
        side = self.side(relay)
        half = self.pick(side, index)
        if half is not None and not half.want_fin and half.reset_came is None:
            self.pair.write(side, half.stream, data.draw(self.sizes))

    @rule(relay=side_of, index=choice, data=st.data(), kept_up=st.booleans())
    def read(self, relay: bool, index: int, data: st.DataObject, kept_up: bool) -> None:
        side = self.side(relay)
        half = self.pick(side, index)
        if half is not None:
            self.pair.read(side, half.stream, data.draw(self.sizes), kept_up=kept_up)

    @rule(relay=side_of, index=choice)
    def finish(self, relay: bool, index: int) -> None:
        side = self.side(relay)
        half = self.pick(side, index)
        if half is not None and half.reset_came is None:
            self.pair.finish(side, half.stream)

    @rule(relay=side_of, index=choice)
    def reset(self, relay: bool, index: int) -> None:
        side = self.side(relay)
        half = self.pick(side, index)
        if half is not None:
            self.pair.reset(side, half.stream)

    @rule(relay=side_of, index=choice, data=st.data())
    def finish_then_reset(self, relay: bool, index: int, data: st.DataObject) -> None:
        side = self.side(relay)
        half = self.pick(side, index)
        if half is not None and not half.want_fin and half.reset_came is None:
            self.pair.write(side, half.stream, data.draw(self.sizes))
            self.pair.finish(side, half.stream)
            if half.finished:
                self.pair.reset(side, half.stream)

    @rule(relay=side_of, size=st.integers(1, 65514))
    def adapt_record_size(self, relay: bool, size: int) -> None:
        self.side(relay).session.record_size = size

    # Publications

    @precondition(lambda self: len(self.publications) < 4)
    @rule()
    def publish(self) -> None:
        self.publications.append(self.pair.publish())

    @precondition(lambda self: self.publications)
    @rule(index=choice)
    def unpublish(self, index: int) -> None:
        publication = self.publications.pop(index % len(self.publications))
        self.pair.agent.session.unpublish(publication)
        self.pair.serve(self.pair.agent)

    @rule(index=choice, port=st.integers(0, 2))
    def answer_publication(self, index: int, port: int) -> None:
        asked = sorted(self.pair.relay.publications)
        if asked:
            number = asked[index % len(asked)]
            if port:
                self.pair.relay.session.published(number, port)
            else:
                self.pair.relay.session.refused(number, 1, "port 11111 is held by nginx")
            self.pair.serve(self.pair.relay)

    # The link

    @rule(relay=side_of, count=st.integers(1, 12))
    def deliver(self, relay: bool, count: int) -> None:
        self.pair.deliver(self.side(relay), count)

    @rule()
    def deliver_all(self) -> None:
        for side in self.pair.sides:
            self.pair.deliver(side)

    @rule(relay=side_of, capacity=st.sampled_from([0, 1, 2000, 10**9]))
    def stall(self, relay: bool, capacity: int) -> None:
        side = self.side(relay)
        side.capacity = capacity
        self.pair.serve(side)

    @rule(to_relay=few, to_agent=few, noticed=st.sampled_from(["none", "relay", "agent", "both"]))
    def cut(self, to_relay: int, to_agent: int, noticed: str) -> None:
        self.pair.cut(to_relay, to_agent)
        for side in self.pair.sides:
            if noticed in (side.name, "both"):
                self.pair.notice(side)

    @rule(to_relay=few, to_agent=few)
    def cut_and_resume(self, to_relay: int, to_agent: int) -> None:
        self.pair.cut(to_relay, to_agent)
        self.pair.resume()

    @rule()
    def resume(self) -> None:
        self.pair.resume()

    @rule()
    def half_resume(self) -> None:
        self.pair.half_resume()

    @rule(seconds=st.sampled_from([0.0005, 0.001, 0.02, 0.06, 1.0, 2.5, 5.0]))
    def wait(self, seconds: float) -> None:
        self.pair.tick(seconds)

    @rule(relay=side_of)
    def probe(self, relay: bool) -> None:
        side = self.side(relay)
        if side.session.attached:
            side.session.probe(self.pair.now)
            self.pair.serve(side)

    # What must hold

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "pair"):
            self.pair.check()

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        pair = self.pair
        for side in pair.sides:
            side.capacity = 10**9
        if not pair.attached or pair.relay.lost or pair.agent.lost:
            pair.resume()
        for side in pair.sides:
            pair.serve(side)
        pair.settle()
        pair.check()
        for _ in range(10_000):
            moved = False
            for side in pair.sides:
                for half in list(side.halves.values()):
                    if half.unread and not half.over:
                        moved = True
                        pair.read(side, half.stream, len(half.unread))
            pair.settle()
            if not moved:
                break
        for side in pair.sides:
            for half in side.halves.values():
                assert half.intent == 0, f"{side.name} is stuck with {half}"
                if half.want_fin and half.reset_came is None and not half.reset:
                    assert half.finished, f"{side.name} cannot finish {half}"
                if not half.over and not half.want_fin and half.reset_came is None:
                    pair.finish(side, half.stream)
        pair.settle()
        pair.check()
        for stream in self.ever:
            pair.check_ended(stream)
        pair.check_at_rest()


class SmallSessionModel(SessionModel):
    profile = SMALL
    sizes = st.one_of(st.integers(1, 300), st.integers(300, 5000))


class LargeSessionModel(SessionModel):
    profile = LARGE
    sizes = st.one_of(
        st.integers(1, 300), st.sampled_from([16384, 16385, 65514, 65515]), st.integers(1, 400_000)
    )


TestSmallSession = SmallSessionModel.TestCase
TestSmallSession.settings = MODEL
TestLargeSession = LargeSessionModel.TestCase
TestLargeSession.settings = MODEL
