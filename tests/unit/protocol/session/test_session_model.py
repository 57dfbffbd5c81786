"""Two sessions over a link that is cut, stalled and resumed at will.

After every step the books are compared with what is held, each byte that arrives with what was
written there; at the end the link heals and everything must come to its end.

    HYPOTHESIS_PROFILE=long pytest tests/unit/protocol/session/test_session_model.py
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.models import MODEL
from tests.support.pair import LARGE, TINY, Half, Pair, PairSide, Profile

side_of = st.booleans()
choice = st.integers(0, 7)
few = st.integers(0, 6)


class SessionModel(RuleBasedStateMachine):
    profile: Profile
    sizes: st.SearchStrategy[int]
    records: tuple[int, ...]

    @initialize(streams=st.integers(0, 3))
    def begin(self, streams: int) -> None:
        self.pair = Pair(self.profile, self.profile)
        self.publications: list[int] = [self.pair.publish()]
        self.pair.settle()
        for _ in range(streams):
            self.open(0)
        self.pair.deliver(self.pair.agent)

    def side(self, relay: bool) -> PairSide:
        return self.pair.relay if relay else self.pair.agent

    def pick(self, side: PairSide, index: int) -> Half | None:
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

    @rule(sides=st.sampled_from(["relay", "agent", "both"]), index=choice, data=st.data())
    def write(self, sides: str, index: int, data: st.DataObject) -> None:
        for side in self.pair.sides:
            half = self.pick(side, index)
            if half is None or half.want_fin or half.reset_came is not None:
                continue
            if sides in (side.name, "both"):
                self.pair.write(side, half.stream, data.draw(self.sizes))

    @rule(relay=side_of, index=choice, data=st.data(), kept_up=st.booleans())
    def read(self, relay: bool, index: int, data: st.DataObject, kept_up: bool) -> None:
        side = self.side(relay)
        half = self.pick(side, index)
        if half is not None:
            self.pair.read(side, half.stream, data.draw(self.sizes), kept_up=kept_up)

    @rule(relay=side_of, index=choice, turns=st.integers(1, 6))
    def bulk(self, relay: bool, index: int, turns: int) -> None:
        """One side sends, all read as it comes: windows grow."""
        for _ in range(turns):
            half = self.pick(self.side(relay), index)
            if half is not None and not half.want_fin and half.reset_came is None:
                self.pair.write(self.side(relay), half.stream, self.profile.stream_window)
            for side in self.pair.sides:
                self.pair.deliver(side)
                for half in list(side.halves.values()):
                    self.pair.read(side, half.stream, 10**6)

    @rule(
        relay=side_of,
        index=choice,
        how=st.sampled_from(["finish", "finish", "reset", "both"]),
        unsent=st.booleans(),
        data=st.data(),
    )
    def end(self, relay: bool, index: int, how: str, unsent: bool, data: st.DataObject) -> None:
        side = self.side(relay)
        half = self.pick(side, index)
        if half is None:
            return
        capacity = side.capacity
        if unsent:
            side.capacity = 0
        if not half.want_fin and half.reset_came is None:
            self.pair.write(side, half.stream, data.draw(self.sizes))
            if how != "reset":
                self.pair.finish(side, half.stream)
        if how == "reset" or (how == "both" and half.finished and not half.over):
            self.pair.reset(side, half.stream)
        side.capacity = capacity

    @rule(relay=side_of, busy=st.booleans())
    def be_busy(self, relay: bool, busy: bool) -> None:
        """Readers that are called run later, as tasks do, or at once."""
        self.side(relay).busy = busy

    @rule(relay=side_of, count=st.integers(1, 3))
    def run_woken(self, relay: bool, count: int) -> None:
        self.pair.run_woken(self.side(relay), count)

    @rule(relay=side_of, data=st.data())
    def adapt_record_size(self, relay: bool, data: st.DataObject) -> None:
        self.side(relay).session.record_size = data.draw(st.sampled_from(self.records))

    # Publications

    @rule(what=st.sampled_from(["publish", "unpublish", "published", "refused"]), index=choice)
    def publication(self, what: str, index: int) -> None:
        relay, agent = self.pair.sides
        asked = sorted(relay.publications)
        if what == "publish" and len(self.publications) < 4:
            self.publications.append(self.pair.publish())
        elif what == "unpublish" and self.publications:
            agent.session.unpublish(self.publications.pop(index % len(self.publications)))
        elif what == "published" and asked:
            relay.session.published(asked[index % len(asked)], 11111)
        elif what == "refused" and asked:
            relay.session.refused(asked[index % len(asked)], 1, "port 11111 is held by nginx")
        for side in self.pair.sides:
            self.pair.serve(side)

    # The link

    @rule(sides=st.sampled_from(["relay", "agent", "both"]), count=st.integers(1, 12))
    def deliver(self, sides: str, count: int) -> None:
        for side in self.pair.sides:
            if sides in (side.name, "both"):
                self.pair.deliver(side, count)

    @rule(relay=side_of, capacity=st.sampled_from([0, 1, 2000, 10**9]))
    def stall(self, relay: bool, capacity: int) -> None:
        side = self.side(relay)
        side.capacity = capacity
        self.pair.serve(side)

    @rule(
        to_relay=few,
        to_agent=few,
        then=st.sampled_from(["silence", "relay", "agent", "both", "half", "resume", "resume"]),
    )
    def cut(self, to_relay: int, to_agent: int, then: str) -> None:
        """`then`: who notices, or what comes of it."""
        self.pair.cut(to_relay, to_agent)
        if then == "resume":
            self.pair.resume()
        elif then == "half":
            self.pair.half_resume()
        for side in self.pair.sides:
            if then in (side.name, "both"):
                self.pair.notice(side)

    @rule(
        side=side_of,
        to_relay=few,
        to_agent=few,
        then=st.sampled_from(["silence", "half", "resume"]),
    )
    def hand_over(self, side: bool, to_relay: int, to_agent: int, then: str) -> None:
        """Another process goes on with one side."""
        self.pair.cut(to_relay, to_agent)
        self.pair.hand_over(self.side(side))
        if then == "half":
            self.pair.half_resume()
        elif then == "resume":
            self.pair.resume()

    @rule()
    def heal(self) -> None:
        self.pair.heal()

    @rule(seconds=st.sampled_from([0.0005, 0.001, 0.06, 0.06, 2.5, 5.0]), probe=st.booleans())
    def wait(self, seconds: float, probe: bool) -> None:
        self.pair.tick(seconds)
        for side in self.pair.sides:
            if probe and side.session.attached:
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
        self.pair.bring_to_an_end()


class SmallSessionModel(SessionModel):
    profile = TINY
    records = (50, 300, 65514)
    sizes = st.one_of(st.integers(1, 300), st.integers(300, 5000))


class LargeSessionModel(SessionModel):
    profile = LARGE
    records = (2048, 16_384, 65514)
    sizes = st.one_of(
        st.integers(1, 300), st.sampled_from([16384, 16385, 65514, 65515]), st.integers(1, 400_000)
    )


TestSmallSession = SmallSessionModel.TestCase
TestSmallSession.settings = MODEL
TestLargeSession = LargeSessionModel.TestCase
TestLargeSession.settings = MODEL
