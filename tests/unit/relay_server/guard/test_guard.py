from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay_server.guard.guard import (
    BEGUN_BYTES,
    BOT_GRACE,
    GRACE,
    GROWN_BYTES,
    GROWN_SECONDS,
    LEAST_BYTES,
    LONG_SECONDS,
    SILENT_GRACE,
    Caps,
    Ending,
    Guard,
    Standing,
    Traffic,
    Visitor,
)
from relay_server.guard.source_scores import TRY_HALF_LIFE


@dataclass(eq=False)
class One:
    """A visitor as a test sees it."""

    host: str
    sent: int = 0
    received: int = 0
    let_in: bool = False
    evicted: bool = False
    place: Visitor | None = None

    @property
    def standing(self) -> Standing:
        if self.place is None:  # evicted before it was told of its place
            return Standing.GONE
        return self.place.standing


@dataclass
class Door:
    """A guard and those who came to it, at a time of the test's own."""

    guard: Guard
    now: float = 1000.0
    inside: list[One] = field(default_factory=list)  # in line too

    def come(self, host: str, *, sent: int = 0) -> One:
        one = One(host, sent)

        def evict() -> None:
            assert not one.evicted
            one.evicted = True
            if one in self.inside:
                self.inside.remove(one)

        one.place = self.guard.come(
            host,
            self.now,
            traffic=lambda: Traffic(one.sent, one.received, one.let_in),
            evict=evict,
        )
        if not one.evicted:
            self.inside.append(one)
        return one

    def enter(self, host: str, *, sent: int = 0) -> One:
        one = self.come(host, sent=sent)
        assert one.standing is Standing.YOUNG
        return one

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.guard.seat(self.now)

    def leave(self, one: One, ending: Ending = Ending.THEIRS) -> None:
        assert one.place is not None
        self.guard.leave(one.place, self.now, ending)
        if one in self.inside:
            self.inside.remove(one)

    def fail(self, host: str, times: int = 1) -> None:
        for _ in range(times):
            self.leave(self.enter(host))

    def score(self, host: str) -> float:
        return self.guard.score(host, self.now)

    def burden(self, host: str) -> float:
        return self.guard.burden(host, self.now)


def door_of(
    *, per_source: int = 64, young_per_source: int = 64, young: int = 64, waiting: int = 64
) -> Door:
    caps = Caps(
        per_source=per_source, young_per_source=young_per_source, young=young, waiting=waiting
    )
    return Door(Guard(caps))


BOT = 10  # failures, or visitors who came to nothing, that make a bot of a source


# Who is young


@pytest.mark.parametrize(
    ("sent", "received", "let_in", "age", "grown"),
    [
        (0, 0, False, 0.0, False),
        (GROWN_BYTES - 1, GROWN_BYTES - 1, False, 0.0, False),
        (GROWN_BYTES, 0, False, 0.0, True),
        (0, GROWN_BYTES, False, 0.0, True),
        (0, 0, True, 0.0, True),
        (0, 0, False, GROWN_SECONDS - 0.1, False),
        (0, 0, False, GROWN_SECONDS, True),
    ],
)
def test_whom_its_server_let_in_is_young_no_more(
    sent: int, received: int, let_in: bool, age: float, grown: bool
) -> None:
    door = door_of()
    one = door.enter("a")
    one.sent, one.received, one.let_in = sent, received, let_in
    door.wait(age)
    assert one.standing is (Standing.GROWN if grown else Standing.YOUNG)
    assert door.guard.young == (not grown)


def test_a_login_is_no_burden() -> None:
    door = door_of()
    one = door.enter("a")
    assert door.burden("a") == 1.0
    one.let_in = True
    door.wait(1.0)
    assert door.burden("a") == pytest.approx(0.0, abs=1e-9)
    door.leave(one)
    assert door.guard.sources == 0


def test_who_was_there_for_minutes_without_a_login_still_is() -> None:
    door = door_of()
    one = door.enter("a")
    door.wait(GROWN_SECONDS)
    assert one.standing is Standing.GROWN
    door.leave(one)
    assert door.score("a") == 1.0


# The caps


def test_the_young_of_one_source() -> None:
    door = door_of(young_per_source=2)
    first, second = door.enter("a"), door.enter("a")
    third = door.come("a")
    other = door.enter("b")
    assert third.standing is Standing.WAITS
    first.let_in = True
    door.wait(0.0)
    assert third.standing is Standing.YOUNG
    assert {second.standing, other.standing} == {Standing.YOUNG}
    assert not first.evicted


def test_the_young_of_all() -> None:
    door = door_of(young=2)
    first, second = door.enter("a"), door.enter("b")
    third = door.come("c")
    assert third.standing is Standing.WAITS
    door.leave(second)
    door.wait(0.0)
    assert third.standing is Standing.YOUNG
    assert not first.evicted


def test_so_many_visitors_of_a_source_whoever_they_are() -> None:
    door = door_of(per_source=2)
    grown, young = door.enter("a"), door.enter("a")
    grown.let_in = True
    late = door.come("a")
    assert late.standing is Standing.WAITS
    assert late.place is not None
    assert door.guard.may_wait(late.place)
    young.let_in = True
    door.wait(GRACE)
    assert not door.guard.may_wait(late.place)
    door.enter("b")
    door.leave(grown, Ending.THEIRS)
    assert door.guard.may_wait(late.place)
    door.wait(0.0)
    assert late.standing is Standing.YOUNG


def test_a_source_at_its_own_cap_holds_up_nobody_else() -> None:
    door = door_of(young_per_source=1, young=2)
    door.enter("a")
    waiting = door.come("a")
    other = door.enter("b")
    third = door.come("c")
    assert {waiting.standing, third.standing} == {Standing.WAITS}
    door.leave(other)
    door.wait(0.0)
    assert (waiting.standing, third.standing) == (Standing.WAITS, Standing.YOUNG)


def test_hosts_of_one_64_are_one_source() -> None:
    door = door_of(young_per_source=1)
    door.enter("2001:db8:1:2::1")
    door.enter("2001:db8:1:3::1")
    assert door.come("2001:db8:1:2:ffff::2").standing is Standing.WAITS


# Who goes


@pytest.mark.parametrize(
    ("sent", "grace"),
    [(0, SILENT_GRACE), (BEGUN_BYTES - 1, SILENT_GRACE), (BEGUN_BYTES, GRACE)],
)
def test_among_equals_one_that_had_its_time(sent: int, grace: float) -> None:
    door = door_of(young=1)
    first = door.enter("a", sent=sent)
    late = door.come("b")
    door.wait(grace - 0.1)
    assert late.standing is Standing.WAITS
    door.wait(0.1)
    assert late.standing is Standing.YOUNG
    assert first.evicted


def test_of_a_bots_source_at_once() -> None:
    door = door_of(young=2)
    door.fail("bot", BOT)
    bot, person = door.enter("bot", sent=2000), door.enter("a")
    late = door.enter("b")
    assert bot.evicted
    assert {person.standing, late.standing} == {Standing.YOUNG}


def test_a_few_failures_make_nobody_a_bot() -> None:
    door = door_of(young=1)
    door.fail("mistyped", 2)
    one = door.enter("mistyped", sent=BEGUN_BYTES)
    assert door.come("b").standing is Standing.WAITS
    assert not one.evicted


def test_a_bot_gets_less_time_and_waits_for_others_of_its_kind() -> None:
    door = door_of(young=2)
    door.fail("bot", BOT)
    door.fail("another", BOT)
    bot, person = door.enter("bot", sent=BEGUN_BYTES), door.enter("a", sent=BEGUN_BYTES)
    late = door.come("another")
    door.wait(BOT_GRACE - 0.1)
    assert late.standing is Standing.WAITS
    door.wait(0.1)
    assert late.standing is Standing.YOUNG
    assert bot.evicted
    assert not person.evicted


def test_a_person_is_not_cut_for_a_bot_though_the_time_is_over_but_not_for_long() -> None:
    door = door_of(young=1)
    door.fail("bot", BOT)
    person = door.enter("a", sent=BEGUN_BYTES)
    bot = door.come("bot")
    door.wait(GRACE + 1.0)
    assert bot.standing is Standing.WAITS
    door.wait(10.0)
    assert bot.standing is Standing.YOUNG
    assert person.evicted


def test_first_the_worst_graded() -> None:
    door = door_of(young=3)
    door.fail("bad", BOT)
    door.fail("worse", 4 * BOT)
    bad, worse = door.enter("bad"), door.enter("worse", sent=2000)
    clean = door.enter("clean")
    door.enter("new")
    assert (worse.evicted, bad.evicted, clean.evicted) == (True, False, False)
    door.enter("newer")
    assert (bad.evicted, clean.evicted) == (True, False)


def test_then_one_that_had_its_time() -> None:
    door = door_of(young=2)
    for host in ("slow", "quick"):
        door.fail(host, BOT)
    slow = door.enter("slow", sent=1900)
    door.now += BOT_GRACE
    quick = door.enter("quick")
    door.enter("new")
    assert (slow.evicted, quick.evicted) == (True, False)


def test_then_the_one_that_sent_least_and_the_oldest_of_equals() -> None:
    door = door_of(young=3)
    some, first, second = door.enter("a", sent=21), door.enter("b"), door.enter("c")
    door.come("d")
    door.wait(SILENT_GRACE)
    assert (some.evicted, first.evicted, second.evicted) == (False, True, False)


@pytest.mark.parametrize(("sent", "first_goes"), [(LEAST_BYTES - 1, True), (LEAST_BYTES, False)])
def test_a_few_bytes_are_as_good_as_none(sent: int, first_goes: bool) -> None:
    door = door_of(young=2)
    first, second = door.enter("a", sent=sent), door.enter("b")
    door.come("c")
    door.wait(SILENT_GRACE)
    assert (first.evicted, second.evicted) == (first_goes, not first_goes)


# The line


def test_a_place_goes_to_the_best_in_line_of_those_to_the_first() -> None:
    door = door_of(young=1)
    door.fail("bot", BOT)
    inside = door.enter("a", sent=BEGUN_BYTES)
    bot, first, second = door.come("bot"), door.come("b"), door.come("c")
    door.leave(inside)
    door.wait(0.0)
    standings = [one.standing for one in (bot, first, second)]
    assert standings == [Standing.WAITS, Standing.YOUNG, Standing.WAITS]


def test_of_more_than_can_wait_the_worst_goes_of_those_the_oldest() -> None:
    door = door_of(young=1, waiting=3)
    door.fail("bot", BOT)
    door.enter("a", sent=BEGUN_BYTES)
    person = door.come("b")
    bots = [door.come("bot") for _ in range(4)]
    assert [one.evicted for one in bots] == [True, True, False, False]
    assert person.standing is Standing.WAITS
    assert door.guard.waiting == 3


def test_a_newcomer_may_be_the_one_who_goes() -> None:
    door = door_of(young=1, waiting=1)
    door.fail("bot", BOT)
    door.enter("a", sent=BEGUN_BYTES)
    person, bot = door.come("b"), door.come("bot")
    assert (person.standing, bot.standing) == (Standing.WAITS, Standing.GONE)


def test_whose_patience_is_over_gets_the_worst_place_if_its_source_has_none() -> None:
    door = door_of(young=3)
    door.fail("bot", 4 * BOT)
    door.fail("mistyped", 2)
    places = [door.enter(host, sent=BEGUN_BYTES) for host in ("a", "mistyped", "b")]
    bots = [door.come("bot") for _ in range(2)]
    for one in bots:
        assert one.place is not None
        door.guard.insist(one.place, door.now)
    assert [one.standing for one in bots] == [Standing.YOUNG, Standing.WAITS]
    assert [one.evicted for one in places] == [False, True, False]


def test_a_free_place_is_taken_before_anybody_goes() -> None:
    door = door_of(young=2)
    first, second = door.enter("a", sent=BEGUN_BYTES), door.enter("b", sent=BEGUN_BYTES)
    late = door.come("c")
    assert late.place is not None
    door.leave(first)
    door.guard.insist(late.place, door.now)
    assert late.standing is Standing.YOUNG
    assert not second.evicted


def test_nobody_insists_where_those_of_its_source_are_established() -> None:
    door = door_of(per_source=1, young=1)
    grown = door.enter("a")
    grown.let_in = True
    late, other = door.come("a"), door.enter("b")
    assert late.place is not None
    door.guard.insist(late.place, door.now)
    assert late.standing is Standing.WAITS
    assert not other.evicted


def test_of_too_many_alike_in_line_one_goes_whose_source_has_a_place() -> None:
    door = door_of(young=2, waiting=2)
    door.enter("a", sent=BEGUN_BYTES)
    door.enter("c", sent=BEGUN_BYTES)
    # By the time that the third comes each source bears two or three, which is one grade.
    door.leave(door.come("b"), Ending.THEIRS)
    alone, second = door.come("b"), door.come("a")
    third = door.come("c")
    assert (alone.evicted, second.evicted, third.evicted) == (False, True, False)


def test_who_leaves_the_line_is_no_failure() -> None:
    door = door_of(young=1)
    door.enter("a")
    late = door.come("b")
    door.leave(late, Ending.OURS)
    assert door.guard.waiting == 0
    assert door.burden("b") == 0.0


# Burdens


@pytest.mark.parametrize(
    ("ending", "let_in", "points"),
    [(Ending.OURS, False, 0), (Ending.THEIRS, False, 1), (Ending.THEIRS, True, 0)],
)
def test_which_endings_count(ending: Ending, let_in: bool, points: int) -> None:
    door = door_of()
    one = door.enter("a", sent=3000)
    one.let_in = let_in
    door.leave(one, ending)
    assert door.score("a") == points


def test_evicted_is_not_a_failure_but_a_visitor_who_came() -> None:
    door = door_of(young=1)
    evicted = door.enter("a")
    door.come("b")
    door.wait(SILENT_GRACE)
    door.leave(evicted)
    assert evicted.evicted
    assert door.score("a") == 0.0
    assert 0.9 < door.burden("a") <= 1.0
    assert door.guard.young == 1
    door.now += 2 * TRY_HALF_LIFE
    assert door.burden("a") < 0.5


def test_200_one_shots_a_minute_leave_nothing() -> None:
    door = door_of(per_source=64, young_per_source=4, young=8)
    for _ in range(200):
        one = door.enter("a", sent=41)
        door.now += 0.3
        one.let_in = True
        door.leave(one)
    assert door.score("a") == 0.0
    assert door.guard.sources == 0


@pytest.mark.parametrize(("seconds", "score"), [(LONG_SECONDS, 2.0), (LONG_SECONDS - 1, 4.0)])
def test_a_long_session_heals(seconds: float, score: float) -> None:
    door = door_of()
    one = door.enter("a")
    one.let_in = True
    door.now += seconds
    door.fail("a", 4)
    door.leave(one)
    assert door.score("a") == score


def test_a_long_stay_without_a_login_does_not() -> None:
    door = door_of()
    one = door.enter("a", sent=3000)
    door.wait(LONG_SECONDS)
    door.leave(one)
    assert door.score("a") == 1.0


def test_who_logged_in_at_the_very_end_did() -> None:
    door = door_of()
    one = door.enter("a")
    one.let_in = True
    door.leave(one)
    assert door.score("a") == 0.0


def test_an_attack_with_defaults_delays_no_newcomer() -> None:
    """20 sources that come again and again; whoever is new gets in at once and can log in."""
    door = door_of(per_source=64, young_per_source=4, young=8)
    bots = [f"203.0.113.{number}" for number in range(20)]
    owner = None
    for turn in range(4000):
        door.now += 0.01
        door.guard.seat(door.now)
        door.come(bots[turn % 20], sent=21 if turn % 3 else 1700)
        if turn >= 400 and turn % 200 == 50:
            owner = door.enter("198.51.100.7")
        if owner is not None:
            owner.sent = 41 + turn % 200 * 12
            if turn % 200 == 150:
                assert not owner.evicted
                owner.let_in = True
                door.leave(owner)
        assert door.guard.young <= 8
        assert door.guard.waiting <= 64
    assert door.score("198.51.100.7") == 0.0


class AnyGuard(RuleBasedStateMachine):
    """What must hold in whatever order things happen."""

    def __init__(self) -> None:
        super().__init__()
        self.caps = Caps(per_source=4, young_per_source=2, young=3, waiting=2)
        self.door = Door(Guard(self.caps, most_resting=3))

    def those(self, standing: Standing) -> list[One]:
        return [one for one in self.door.inside if one.standing is standing]

    @rule(host=st.sampled_from("abcdefgh"))
    def come(self, host: str) -> None:
        logged_in = [one for one in self.door.inside if one.let_in and one.standing is not WAITS]
        before = list(self.door.inside)
        self.door.come(host)
        assert not any(one.evicted for one in logged_in)
        gone = len([one for one in before if one.evicted])
        assert gone <= len(before)

    @precondition(lambda self: self.door.inside)
    @rule(data=st.data(), count=st.sampled_from([1, BEGUN_BYTES, GROWN_BYTES]))
    def send(self, data: st.DataObject, count: int) -> None:
        data.draw(st.sampled_from(self.door.inside)).sent += count

    @precondition(lambda self: self.those(Standing.YOUNG))
    @rule(data=st.data())
    def log_in(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.those(Standing.YOUNG))).let_in = True

    @precondition(lambda self: self.door.inside)
    @rule(data=st.data(), ending=st.sampled_from(Ending))
    def go(self, data: st.DataObject, ending: Ending) -> None:
        self.door.leave(data.draw(st.sampled_from(self.door.inside)), ending)

    @rule(seconds=st.sampled_from([0.1, SILENT_GRACE, GRACE, GROWN_SECONDS, TRY_HALF_LIFE]))
    def wait(self, seconds: float) -> None:
        self.door.wait(seconds)

    @precondition(lambda self: self.those(Standing.WAITS))
    @rule(data=st.data())
    def lose_patience(self, data: st.DataObject) -> None:
        """No source is refused while another has one of the places."""
        one = data.draw(st.sampled_from(self.those(Standing.WAITS)))
        logged_in = [other for other in self.door.inside if other.let_in]
        self.door.wait(0.0)
        has_place = any(
            other.host == one.host and other.standing is not Standing.WAITS
            for other in self.door.inside
        )
        assert one.place is not None
        self.door.guard.insist(one.place, self.door.now)
        assert has_place or one.standing is Standing.YOUNG
        assert not any(other.evicted for other in logged_in)

    @invariant()
    def caps_hold(self) -> None:
        young = self.those(Standing.YOUNG)
        waiting = self.those(Standing.WAITS)
        assert self.door.guard.young == len(young) <= self.caps.young
        assert self.door.guard.waiting == len(waiting) <= 2
        for host in "abcdefgh":
            mine = [one for one in self.door.inside if one.host == host and one not in waiting]
            assert len(mine) <= self.caps.per_source
            assert len([one for one in young if one.host == host]) <= self.caps.young_per_source
            assert self.door.burden(host) >= 0.0

    @invariant()
    def table_is_bounded(self) -> None:
        hosts = {one.host for one in self.door.inside}
        assert len(hosts) <= self.door.guard.sources <= len(hosts) + 3


WAITS = Standing.WAITS
TestAnyGuard = AnyGuard.TestCase


# Who logs in nowhere


def test_where_nobody_is_young_only_those_of_one_source_are_counted() -> None:
    door = door_of(per_source=2, young_per_source=0, young=0)
    first = door.come("a")
    door.come("a")
    third = door.come("a")
    assert third.standing is Standing.WAITS
    assert third.place is not None
    assert not door.guard.may_wait(third.place), "no place of theirs comes free by itself"
    assert [door.come(f"b{number}").standing for number in range(100)] == [Standing.GROWN] * 100
    door.wait(GROWN_SECONDS)
    assert not first.evicted
    door.leave(first)
    door.wait(0)
    assert third.standing is Standing.GROWN
    assert door.guard.young == 0


def test_who_cannot_log_in_has_not_failed_to() -> None:
    door = door_of(per_source=2, young_per_source=0, young=0)
    for number in range(100):
        door.leave(door.come(f"a{number}"))
    assert door.guard.sources == 0


@pytest.mark.parametrize("caps", [{"young": 0}, {"young_per_source": 0}, {"per_source": 0}])
def test_a_cap_of_none_is_none(caps: dict[str, int]) -> None:
    door = door_of(**({"per_source": 1000, "young_per_source": 1000, "young": 1000} | caps))
    for number in range(200):
        door.enter("a" if "young" not in caps else f"a{number}")
    assert door.guard.waiting == 0


def test_caps_that_change_take_nobodys_place() -> None:
    door = door_of(young=3)
    places = [door.enter(f"a{number}") for number in range(3)]
    door.guard.caps = replace(door.guard.caps, young=1)
    late = door.come("b")
    assert late.standing is Standing.WAITS
    assert not any(one.evicted for one in places)
    for one in places:
        door.leave(one)
    door.wait(0)
    assert late.standing is Standing.YOUNG
