from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay_server.guard import (
    BEGUN_BYTES,
    GRACE,
    GROWN_BYTES,
    GROWN_SECONDS,
    HALF_LIFE,
    LEAST_BYTES,
    LONG_SECONDS,
    MAX_RESTING,
    ONE_SHOT_BYTES,
    SERVED_BYTES,
    SILENT_GRACE,
    SOME_BYTES,
    SOME_SECONDS,
    WORST,
    Answer,
    Caps,
    Ending,
    Guard,
    Traffic,
    Visitor,
)


@dataclass(eq=False)
class One:
    """A visitor as a test sees it."""

    host: str
    sent: int = 0
    received: int = 0
    evicted: bool = False
    place: Visitor | None = None


@dataclass
class Door:
    """A guard and those who came to it, at a time of the test's own."""

    guard: Guard
    now: float = 1000.0
    inside: list[One] = field(default_factory=list)

    def ask(self, host: str, *, patient: bool = False, sent: int = 0) -> One | Answer:
        one = One(host, sent)

        def evict() -> None:
            assert not one.evicted
            one.evicted = True
            self.inside.remove(one)

        answer = self.guard.arrive(
            host,
            self.now,
            traffic=lambda: Traffic(one.sent, one.received),
            evict=evict,
            patient=patient,
        )
        if isinstance(answer, Answer):
            return answer
        one.place = answer
        self.inside.append(one)
        return one

    def enter(self, host: str, *, patient: bool = False, sent: int = 0) -> One:
        one = self.ask(host, patient=patient, sent=sent)
        assert isinstance(one, One)
        return one

    def leave(self, one: One, ending: Ending = Ending.CUT) -> None:
        assert one.place is not None
        self.guard.leave(one.place, self.now, ending)
        if one in self.inside:
            self.inside.remove(one)

    def fail(self, host: str, times: int = 1) -> None:
        for _ in range(times):
            self.leave(self.enter(host))

    def score(self, host: str) -> float:
        return self.guard.score(host, self.now)


def door_of(*, per_source: int = 100, young_per_source: int = 100, young: int = 100) -> Door:
    caps = Caps(per_source=per_source, young_per_source=young_per_source, young=young)
    return Door(Guard(caps))


# Growing up


@pytest.mark.parametrize(
    ("sent", "received", "age", "young"),
    [
        (GROWN_BYTES - 1, 0, 0.0, True),
        (GROWN_BYTES, 0, 0.0, False),
        (0, SERVED_BYTES - 1, 0.0, True),
        (0, SERVED_BYTES, 0.0, False),
        (SOME_BYTES, 0, SOME_SECONDS - 0.1, True),
        (SOME_BYTES, 0, SOME_SECONDS, False),
        (SOME_BYTES - 1, 0, SOME_SECONDS, True),
        (0, 0, GROWN_SECONDS - 0.1, True),
        (0, 0, GROWN_SECONDS, False),
    ],
)
def test_who_is_young(sent: int, received: int, age: float, young: bool) -> None:
    door = door_of(young=1)
    one = door.enter("a")
    one.sent, one.received = sent, received
    door.now += age
    door.enter("b")
    assert one.evicted is young


def test_a_grown_visitor_has_no_part_in_the_caps_on_the_young() -> None:
    door = door_of(young_per_source=1, young=1)
    grown = [door.enter("a", sent=GROWN_BYTES) for _ in range(20)]
    young = door.enter("a")
    assert door.guard.young == 1
    door.enter("b")
    assert young.evicted
    assert not any(one.evicted for one in grown)


# The caps


def test_so_many_young_of_a_source_and_then_its_own_go() -> None:
    door = door_of(young_per_source=2)
    other = door.enter("b")
    first, second = door.enter("a"), door.enter("a")
    third = door.enter("a")
    assert (first.evicted, second.evicted, third.evicted, other.evicted) == (True,) + (False,) * 3
    assert door.guard.young == 3


def test_so_many_young_in_all() -> None:
    door = door_of(young=2)
    first, second = door.enter("a"), door.enter("b")
    assert not first.evicted
    door.enter("c")
    assert first.evicted
    assert not second.evicted
    assert door.guard.young == 2


def test_so_many_visitors_of_a_source_whoever_they_are() -> None:
    door = door_of(per_source=2)
    grown = door.enter("a", sent=GROWN_BYTES)
    young = door.enter("a")
    late = door.enter("a")
    assert young.evicted
    late.sent = GROWN_BYTES
    assert door.ask("a") is Answer.CROWDED
    door.enter("b")
    door.leave(grown, Ending.FINISHED)
    door.enter("a")


def test_hosts_of_one_64_are_one_source() -> None:
    door = door_of(young_per_source=1)
    first = door.enter("2001:db8:1:2::1")
    other = door.enter("2001:db8:1:3::1")
    door.enter("2001:db8:1:2:ffff::2")
    assert first.evicted
    assert not other.evicted


# Who goes


def test_first_the_worst_scored() -> None:
    door = door_of(young=3)
    door.fail("bad", 2)
    door.fail("worse", 3)
    door.now += 1
    clean = [door.enter("clean")]
    bad, worse = door.enter("bad", sent=2000), door.enter("worse", sent=2000)
    door.enter("new")
    assert (worse.evicted, bad.evicted) == (True, False)
    door.enter("newer")
    assert bad.evicted
    assert not clean[0].evicted


def test_one_failure_that_is_a_moment_old_is_as_good_as_none() -> None:
    door = door_of(young=2)
    door.fail("mistyped")
    door.now += 0.1
    idle = door.enter("idle")
    mistyped = door.enter("mistyped", sent=41)
    door.enter("new")
    assert (idle.evicted, mistyped.evicted) == (True, False)


def test_then_one_whose_source_holds_the_most() -> None:
    door = door_of(young=3)
    single = door.enter("a")
    several = [door.enter("b", sent=1000), door.enter("b", sent=900)]
    door.enter("c")
    assert [one.evicted for one in several] == [False, True]
    assert not single.evicted


@pytest.mark.parametrize(("sent", "grace"), [(0, SILENT_GRACE), (1900, GRACE)])
def test_then_one_that_had_its_time(sent: int, grace: float) -> None:
    door = door_of(young=2)
    first = door.enter("a", sent=sent)
    door.now += grace
    fresh = door.enter("b")
    door.enter("c")
    assert (first.evicted, fresh.evicted) == (True, False)


def test_then_the_one_that_sent_least_and_the_oldest_of_equals() -> None:
    door = door_of(young=3)
    some, first, second = door.enter("a", sent=21), door.enter("b"), door.enter("c")
    door.enter("d")
    assert (some.evicted, first.evicted, second.evicted) == (False, True, False)


@pytest.mark.parametrize(("sent", "first_goes"), [(LEAST_BYTES - 1, True), (LEAST_BYTES, False)])
def test_a_few_bytes_are_as_good_as_none(sent: int, first_goes: bool) -> None:
    door = door_of(young=2)
    first, second = door.enter("a", sent=sent), door.enter("b")
    door.enter("c")
    assert (first.evicted, second.evicted) == (first_goes, not first_goes)


# Waiting


@pytest.mark.parametrize(
    ("sent", "grace"), [(0, SILENT_GRACE), (BEGUN_BYTES - 1, SILENT_GRACE), (BEGUN_BYTES, GRACE)]
)
def test_who_is_no_better_waits_until_another_has_had_its_time(sent: int, grace: float) -> None:
    door = door_of(young=1)
    first = door.enter("a", sent=sent)
    assert door.ask("b", patient=True) is Answer.WAIT
    door.now += grace - 0.1
    assert door.ask("b", patient=True) is Answer.WAIT
    assert not first.evicted
    door.now += 0.1
    door.enter("b", patient=True)
    assert first.evicted


def test_who_has_waited_enough_gets_the_place() -> None:
    door = door_of(young=1)
    first = door.enter("a")
    door.enter("b", patient=False)
    assert first.evicted


def test_nobody_waits_for_the_worse_scored() -> None:
    door = door_of(young=1)
    door.fail("bad", 2)
    door.now += 1
    bad = door.enter("bad")
    door.enter("new", patient=True)
    assert bad.evicted
    assert door.ask("bad", patient=True) is Answer.WAIT


def test_nobody_waits_for_who_holds_more() -> None:
    door = door_of(young=3)
    for host in ("a", "a", "b"):
        door.enter(host)
    assert door.ask("b", patient=True) is Answer.WAIT, "they would be two to one"
    door.enter("c", patient=True)
    assert [one.host for one in door.inside] == ["a", "b", "c"]


def test_a_place_that_frees_itself_is_taken() -> None:
    door = door_of(young=1)
    first = door.enter("a")
    assert door.ask("b", patient=True) is Answer.WAIT
    first.sent = GROWN_BYTES
    door.enter("b", patient=True)
    assert not first.evicted


# Scores


def test_each_visitor_that_ends_young_costs_a_point_and_time_heals() -> None:
    door = door_of()
    door.fail("a", 4)
    assert door.score("a") == 4.0
    door.now += HALF_LIFE
    assert door.score("a") == pytest.approx(2.0)
    door.fail("a")
    assert door.score("a") == pytest.approx(3.0)
    assert door.score("b") == 0.0


def test_a_score_has_a_bound() -> None:
    door = door_of()
    door.fail("a", int(WORST) + 5)
    assert door.score("a") == WORST


@pytest.mark.parametrize(
    ("ending", "exchanged", "points"),
    [
        (Ending.OURS, 1000, 0),
        (Ending.CUT, 1000, 1),
        (Ending.CUT, ONE_SHOT_BYTES, 1),
        (Ending.FINISHED, ONE_SHOT_BYTES - 1, 1),
        (Ending.FINISHED, ONE_SHOT_BYTES, 0),
    ],
)
def test_which_endings_count(ending: Ending, exchanged: int, points: int) -> None:
    door = door_of()
    one = door.enter("a", sent=1000)
    one.received = exchanged - 1000
    door.leave(one, ending)
    assert door.score("a") == points


def test_evicted_is_not_a_failure() -> None:
    door = door_of(young=1)
    evicted = door.enter("a")
    door.enter("b")
    door.leave(evicted)
    assert door.score("a") == 0.0
    assert door.guard.young == 1
    assert door.guard.sources == 1


@pytest.mark.parametrize(("sent", "received"), [(2373, 1394), (3673, 3593), (1402, 1358)])
def test_200_one_shots_a_minute_are_no_failures(sent: int, received: int) -> None:
    """By OpenSSH's client at dropbear and at OpenSSH, and by dropbear's own at dropbear."""
    door = door_of(per_source=64, young_per_source=4, young=8)
    for _ in range(200):
        one = door.enter("a", patient=True)
        door.now += 0.3
        one.sent, one.received = sent, received
        door.leave(one, Ending.FINISHED)
    assert door.score("a") == 0.0
    assert door.guard.sources == 0


@pytest.mark.parametrize(("seconds", "score"), [(LONG_SECONDS, 2.0), (LONG_SECONDS - 1, 4.0)])
def test_a_long_session_heals(seconds: float, score: float) -> None:
    door = door_of()
    one = door.enter("a", sent=GROWN_BYTES)
    door.now += seconds
    door.fail("a", 4)
    door.leave(one, Ending.CUT)
    assert door.score("a") == score


def test_who_grew_up_at_the_very_end_did_not_end_young() -> None:
    door = door_of()
    one = door.enter("a")
    one.sent = GROWN_BYTES
    door.leave(one)
    assert door.score("a") == 0.0


# The table


def test_only_sources_with_visitors_or_a_score_are_remembered() -> None:
    door = door_of()
    one = door.enter("a")
    assert door.guard.sources == 1
    door.leave(one, Ending.OURS)
    assert door.guard.sources == 0
    door.fail("b")
    assert door.guard.sources == 1
    door.now += HALF_LIFE + 1
    door.leave(door.enter("b"), Ending.OURS)
    assert door.guard.sources == 0, "half a point is not worth it"


def test_the_best_healed_is_forgotten_first_and_the_least_recent_of_equals() -> None:
    door = door_of()
    door.fail("bad", 2)
    for number in range(MAX_RESTING - 1):
        door.fail(f"10.0.{number // 256}.{number % 256}")
    assert door.guard.sources == MAX_RESTING
    door.fail("new")
    assert door.guard.sources == MAX_RESTING
    assert door.score("bad") == 2.0
    assert door.score("10.0.0.0") == 0.0
    assert door.score("10.0.0.1") == door.score("new") == 1.0


def test_an_attack_with_defaults_never_shuts_a_newcomer_out() -> None:
    """20 sources that come again and again; whoever is new gets in at once and can log in."""
    door = door_of(per_source=64, young_per_source=4, young=8)
    bots = [f"203.0.113.{number}" for number in range(20)]
    for turn in range(2000):
        door.now += 0.05
        door.ask(bots[turn % 20], sent=21)
        if turn % 100 == 50:
            owner = door.enter("198.51.100.7", sent=41)
        if turn % 100 in range(55, 70):
            owner.sent = 1649  # keys are exchanged
        if turn % 100 == 70:
            assert not owner.evicted
            owner.sent = GROWN_BYTES
        assert door.guard.young <= 8
    assert not owner.evicted


class AnyGuard(RuleBasedStateMachine):
    """What must hold in whatever order things happen."""

    def __init__(self) -> None:
        super().__init__()
        self.caps = Caps(per_source=4, young_per_source=2, young=3)
        self.door = Door(Guard(self.caps, most_resting=3))

    def young(self) -> list[One]:
        return [one for one in self.door.inside if one.place is not None and one.place.young]

    @rule(host=st.sampled_from("abcdefgh"), patient=st.booleans())
    def come(self, host: str, patient: bool) -> None:
        before = list(self.door.inside)
        grown = [one for one in before if one not in self.young() or one.sent >= GROWN_BYTES]
        had_none = not any(one.host == host for one in before)
        answer = self.door.ask(host, patient=patient)
        assert not any(one.evicted for one in grown)
        if had_none:
            assert isinstance(answer, One) or (patient and answer is Answer.WAIT)
        gone = len([one for one in before if one.evicted])
        assert gone <= (1 if isinstance(answer, One) else 0)

    @precondition(lambda self: self.door.inside)
    @rule(data=st.data(), count=st.sampled_from([1, SOME_BYTES, GROWN_BYTES]))
    def send(self, data: st.DataObject, count: int) -> None:
        data.draw(st.sampled_from(self.door.inside)).sent += count

    @precondition(lambda self: self.door.inside)
    @rule(data=st.data(), ending=st.sampled_from(Ending))
    def go(self, data: st.DataObject, ending: Ending) -> None:
        one = data.draw(st.sampled_from(self.door.inside))
        self.door.leave(one, ending)

    @rule(
        seconds=st.sampled_from([0.1, SILENT_GRACE, GRACE, SOME_SECONDS, GROWN_SECONDS, HALF_LIFE])
    )
    def wait(self, seconds: float) -> None:
        self.door.now += seconds

    @invariant()
    def caps_hold(self) -> None:
        young = self.young()
        assert self.door.guard.young == len(young) <= self.caps.young
        for host in "abcdefgh":
            mine = [one for one in self.door.inside if one.host == host]
            assert len(mine) <= self.caps.per_source
            assert len([one for one in young if one.host == host]) <= self.caps.young_per_source
            assert 0.0 <= self.door.score(host) <= WORST

    @invariant()
    def table_is_bounded(self) -> None:
        hosts = {one.host for one in self.door.inside}
        assert len(hosts) <= self.door.guard.sources <= len(hosts) + 3


TestAnyGuard = AnyGuard.TestCase
