from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay_server.guard.guard import (
    BEGUN_BYTES,
    ESTABLISHED_BYTES,
    ESTABLISHED_SECONDS,
    IDENT_BYTES,
    LOGIN_GRACE,
    LONG_SESSION,
    PENALIZED_LOGIN_GRACE,
    SILENT_GRACE,
    Caps,
    Ending,
    Guard,
    Standing,
    Traffic,
    Visitor,
)
from relay_server.guard.source_penalties import ATTEMPT_HALF_LIFE


@dataclass(eq=False)
class One:
    """A visitor as a test sees it."""

    host: str
    sent: int = 0
    received: int = 0
    login_seen: bool = False
    evicted: bool = False
    place: Visitor | None = None

    @property
    def standing(self) -> Standing:
        if self.place is None:  # evicted before it was told of its place
            return Standing.GONE
        return self.place.standing


@dataclass
class Trial:
    """A guard and the visitors that came to it, at a time of the test's own."""

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

        one.place = self.guard.arrive(
            host,
            self.now,
            traffic=lambda: Traffic(one.sent, one.received, one.login_seen),
            evict=evict,
        )
        if not one.evicted:
            self.inside.append(one)
        return one

    def enter(self, host: str, *, sent: int = 0) -> One:
        one = self.come(host, sent=sent)
        assert one.standing is Standing.UNAUTHENTICATED
        return one

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.guard.admit(self.now)

    def leave(self, one: One, ending: Ending = Ending.THEIRS) -> None:
        assert one.place is not None
        self.guard.leave(one.place, self.now, ending)
        if one in self.inside:
            self.inside.remove(one)

    def fail(self, host: str, times: int = 1) -> None:
        for _ in range(times):
            self.leave(self.enter(host))

    def failures(self, host: str) -> float:
        record = self.guard.record(host)
        record.decay(self.now)
        return record.failures

    def penalty(self, host: str) -> float:
        return self.guard.record(host).penalty_at(self.now)


def trial_of(
    *,
    per_source: int = 64,
    unauthenticated_per_source: int = 64,
    unauthenticated: int = 64,
    waiting: int = 64,
) -> Trial:
    caps = Caps(
        per_source=per_source,
        unauthenticated_per_source=unauthenticated_per_source,
        unauthenticated=unauthenticated,
        waiting=waiting,
    )
    return Trial(Guard(caps))


BOT = 10  # failures, or visitors who came to nothing, that make a bot of a source


# Which visitors are unauthenticated


@pytest.mark.parametrize(
    ("sent", "received", "login_seen", "age", "established"),
    [
        (0, 0, False, 0.0, False),
        (ESTABLISHED_BYTES - 1, ESTABLISHED_BYTES - 1, False, 0.0, False),
        (ESTABLISHED_BYTES, 0, False, 0.0, True),
        (0, ESTABLISHED_BYTES, False, 0.0, True),
        (0, 0, True, 0.0, True),
        (0, 0, False, ESTABLISHED_SECONDS - 0.1, False),
        (0, 0, False, ESTABLISHED_SECONDS, True),
    ],
)
def test_a_visitor_that_its_server_let_in_is_established(
    sent: int, received: int, login_seen: bool, age: float, established: bool
) -> None:
    trial = trial_of()
    one = trial.enter("a")
    one.sent, one.received, one.login_seen = sent, received, login_seen
    trial.wait(age)
    assert one.standing is (Standing.ESTABLISHED if established else Standing.UNAUTHENTICATED)
    assert trial.guard.unauthenticated == (not established)


def test_a_login_leaves_no_penalty() -> None:
    trial = trial_of()
    one = trial.enter("a")
    assert trial.penalty("a") == 1.0
    one.login_seen = True
    trial.wait(1.0)
    assert trial.penalty("a") == pytest.approx(0.0, abs=1e-9)
    trial.leave(one)
    assert trial.guard.sources == 0


def test_who_was_there_for_minutes_without_a_login_still_is() -> None:
    trial = trial_of()
    one = trial.enter("a")
    trial.wait(ESTABLISHED_SECONDS)
    assert one.standing is Standing.ESTABLISHED
    trial.leave(one)
    assert trial.failures("a") == 1.0


# The caps


def test_unauthenticated_visitors_of_one_source_are_capped() -> None:
    trial = trial_of(unauthenticated_per_source=2)
    first, second = trial.enter("a"), trial.enter("a")
    third = trial.come("a")
    other = trial.enter("b")
    assert third.standing is Standing.WAITING
    first.login_seen = True
    trial.wait(0.0)
    assert third.standing is Standing.UNAUTHENTICATED
    assert {second.standing, other.standing} == {Standing.UNAUTHENTICATED}
    assert not first.evicted


def test_unauthenticated_visitors_of_all_sources_are_capped() -> None:
    trial = trial_of(unauthenticated=2)
    first, second = trial.enter("a"), trial.enter("b")
    third = trial.come("c")
    assert third.standing is Standing.WAITING
    trial.leave(second)
    trial.wait(0.0)
    assert third.standing is Standing.UNAUTHENTICATED
    assert not first.evicted


def test_so_many_visitors_of_a_source_whoever_they_are() -> None:
    trial = trial_of(per_source=2)
    established, unauthenticated = trial.enter("a"), trial.enter("a")
    established.login_seen = True
    late = trial.come("a")
    assert late.standing is Standing.WAITING
    assert late.place is not None
    assert trial.guard.may_wait(late.place)
    unauthenticated.login_seen = True
    trial.wait(LOGIN_GRACE)
    assert not trial.guard.may_wait(late.place)
    trial.enter("b")
    trial.leave(established, Ending.THEIRS)
    assert trial.guard.may_wait(late.place)
    trial.wait(0.0)
    assert late.standing is Standing.UNAUTHENTICATED


def test_a_source_at_its_own_cap_holds_up_nobody_else() -> None:
    trial = trial_of(unauthenticated_per_source=1, unauthenticated=2)
    trial.enter("a")
    waiting = trial.come("a")
    other = trial.enter("b")
    third = trial.come("c")
    assert {waiting.standing, third.standing} == {Standing.WAITING}
    trial.leave(other)
    trial.wait(0.0)
    assert (waiting.standing, third.standing) == (Standing.WAITING, Standing.UNAUTHENTICATED)


def test_hosts_of_one_64_are_one_source() -> None:
    trial = trial_of(unauthenticated_per_source=1)
    trial.enter("2001:db8:1:2::1")
    trial.enter("2001:db8:1:3::1")
    assert trial.come("2001:db8:1:2:ffff::2").standing is Standing.WAITING


# Who goes


@pytest.mark.parametrize(
    ("sent", "grace"),
    [(0, SILENT_GRACE), (BEGUN_BYTES - 1, SILENT_GRACE), (BEGUN_BYTES, LOGIN_GRACE)],
)
def test_among_equals_one_that_had_its_time(sent: int, grace: float) -> None:
    trial = trial_of(unauthenticated=1)
    first = trial.enter("a", sent=sent)
    late = trial.come("b")
    trial.wait(grace - 0.1)
    assert late.standing is Standing.WAITING
    trial.wait(0.1)
    assert late.standing is Standing.UNAUTHENTICATED
    assert first.evicted


def test_of_a_bots_source_at_once() -> None:
    trial = trial_of(unauthenticated=2)
    trial.fail("bot", BOT)
    bot, person = trial.enter("bot", sent=2000), trial.enter("a")
    late = trial.enter("b")
    assert bot.evicted
    assert {person.standing, late.standing} == {Standing.UNAUTHENTICATED}


def test_a_few_failures_make_nobody_a_bot() -> None:
    trial = trial_of(unauthenticated=1)
    trial.fail("mistyped", 2)
    one = trial.enter("mistyped", sent=BEGUN_BYTES)
    assert trial.come("b").standing is Standing.WAITING
    assert not one.evicted


def test_a_bot_gets_less_time_and_waits_for_others_of_its_kind() -> None:
    trial = trial_of(unauthenticated=2)
    trial.fail("bot", BOT)
    trial.fail("another", BOT)
    bot, person = trial.enter("bot", sent=BEGUN_BYTES), trial.enter("a", sent=BEGUN_BYTES)
    late = trial.come("another")
    trial.wait(PENALIZED_LOGIN_GRACE - 0.1)
    assert late.standing is Standing.WAITING
    trial.wait(0.1)
    assert late.standing is Standing.UNAUTHENTICATED
    assert bot.evicted
    assert not person.evicted


def test_a_person_is_not_cut_for_a_bot_though_the_time_is_over_but_not_for_long() -> None:
    trial = trial_of(unauthenticated=1)
    trial.fail("bot", BOT)
    person = trial.enter("a", sent=BEGUN_BYTES)
    bot = trial.come("bot")
    trial.wait(LOGIN_GRACE + 1.0)
    assert bot.standing is Standing.WAITING
    trial.wait(10.0)
    assert bot.standing is Standing.UNAUTHENTICATED
    assert person.evicted


def test_first_the_worst_level_goes() -> None:
    trial = trial_of(unauthenticated=3)
    trial.fail("bad", BOT)
    trial.fail("worse", 4 * BOT)
    bad, worse = trial.enter("bad"), trial.enter("worse", sent=2000)
    clean = trial.enter("clean")
    trial.enter("new")
    assert (worse.evicted, bad.evicted, clean.evicted) == (True, False, False)
    trial.enter("newer")
    assert (bad.evicted, clean.evicted) == (True, False)


def test_then_one_that_had_its_time() -> None:
    trial = trial_of(unauthenticated=2)
    for host in ("slow", "quick"):
        trial.fail(host, BOT)
    slow = trial.enter("slow", sent=1900)
    trial.now += PENALIZED_LOGIN_GRACE
    quick = trial.enter("quick")
    trial.enter("new")
    assert (slow.evicted, quick.evicted) == (True, False)


def test_then_the_one_that_sent_least_and_the_oldest_of_equals() -> None:
    trial = trial_of(unauthenticated=3)
    some, first, second = trial.enter("a", sent=21), trial.enter("b"), trial.enter("c")
    trial.come("d")
    trial.wait(SILENT_GRACE)
    assert (some.evicted, first.evicted, second.evicted) == (False, True, False)


@pytest.mark.parametrize(("sent", "first_goes"), [(IDENT_BYTES - 1, True), (IDENT_BYTES, False)])
def test_a_few_bytes_are_as_good_as_none(sent: int, first_goes: bool) -> None:
    trial = trial_of(unauthenticated=2)
    first, second = trial.enter("a", sent=sent), trial.enter("b")
    trial.come("c")
    trial.wait(SILENT_GRACE)
    assert (first.evicted, second.evicted) == (first_goes, not first_goes)


# The line


def test_a_place_goes_to_the_best_in_line_of_those_to_the_first() -> None:
    trial = trial_of(unauthenticated=1)
    trial.fail("bot", BOT)
    inside = trial.enter("a", sent=BEGUN_BYTES)
    bot, first, second = trial.come("bot"), trial.come("b"), trial.come("c")
    trial.leave(inside)
    trial.wait(0.0)
    standings = [one.standing for one in (bot, first, second)]
    assert standings == [Standing.WAITING, Standing.UNAUTHENTICATED, Standing.WAITING]


def test_of_more_than_can_wait_the_worst_goes_of_those_the_oldest() -> None:
    trial = trial_of(unauthenticated=1, waiting=3)
    trial.fail("bot", BOT)
    trial.enter("a", sent=BEGUN_BYTES)
    person = trial.come("b")
    bots = [trial.come("bot") for _ in range(4)]
    assert [one.evicted for one in bots] == [True, True, False, False]
    assert person.standing is Standing.WAITING
    assert trial.guard.waiting == 3


def test_a_newcomer_may_be_the_one_who_goes() -> None:
    trial = trial_of(unauthenticated=1, waiting=1)
    trial.fail("bot", BOT)
    trial.enter("a", sent=BEGUN_BYTES)
    person, bot = trial.come("b"), trial.come("bot")
    assert (person.standing, bot.standing) == (Standing.WAITING, Standing.GONE)


def test_one_whose_patience_is_over_gets_the_worst_place_if_its_source_has_none() -> None:
    trial = trial_of(unauthenticated=3)
    trial.fail("bot", 4 * BOT)
    trial.fail("mistyped", 2)
    places = [trial.enter(host, sent=BEGUN_BYTES) for host in ("a", "mistyped", "b")]
    bots = [trial.come("bot") for _ in range(2)]
    for one in bots:
        assert one.place is not None
        trial.guard.admit_overdue(one.place, trial.now)
    assert [one.standing for one in bots] == [Standing.UNAUTHENTICATED, Standing.WAITING]
    assert [one.evicted for one in places] == [False, True, False]


def test_a_free_place_is_taken_before_anybody_goes() -> None:
    trial = trial_of(unauthenticated=2)
    first, second = trial.enter("a", sent=BEGUN_BYTES), trial.enter("b", sent=BEGUN_BYTES)
    late = trial.come("c")
    assert late.place is not None
    trial.leave(first)
    trial.guard.admit_overdue(late.place, trial.now)
    assert late.standing is Standing.UNAUTHENTICATED
    assert not second.evicted


def test_no_place_is_taken_for_a_source_whose_visitors_are_established() -> None:
    trial = trial_of(per_source=1, unauthenticated=1)
    established = trial.enter("a")
    established.login_seen = True
    late, other = trial.come("a"), trial.enter("b")
    assert late.place is not None
    trial.guard.admit_overdue(late.place, trial.now)
    assert late.standing is Standing.WAITING
    assert not other.evicted


def test_of_too_many_alike_in_line_one_goes_whose_source_has_a_place() -> None:
    trial = trial_of(unauthenticated=2, waiting=2)
    trial.enter("a", sent=BEGUN_BYTES)
    trial.enter("c", sent=BEGUN_BYTES)
    # When the third comes each source has a penalty of two or three, which is one level.
    trial.leave(trial.come("b"), Ending.THEIRS)
    alone, second = trial.come("b"), trial.come("a")
    third = trial.come("c")
    assert (alone.evicted, second.evicted, third.evicted) == (False, True, False)


def test_who_leaves_the_line_is_no_failure() -> None:
    trial = trial_of(unauthenticated=1)
    trial.enter("a")
    late = trial.come("b")
    trial.leave(late, Ending.OURS)
    assert trial.guard.waiting == 0
    assert trial.penalty("b") == 0.0


# Penalties


@pytest.mark.parametrize(
    ("ending", "login_seen", "points"),
    [(Ending.OURS, False, 0), (Ending.THEIRS, False, 1), (Ending.THEIRS, True, 0)],
)
def test_which_endings_count(ending: Ending, login_seen: bool, points: int) -> None:
    trial = trial_of()
    one = trial.enter("a", sent=3000)
    one.login_seen = login_seen
    trial.leave(one, ending)
    assert trial.failures("a") == points


def test_evicted_is_not_a_failure_but_a_visitor_who_came() -> None:
    trial = trial_of(unauthenticated=1)
    evicted = trial.enter("a")
    trial.come("b")
    trial.wait(SILENT_GRACE)
    trial.leave(evicted)
    assert evicted.evicted
    assert trial.failures("a") == 0.0
    assert 0.9 < trial.penalty("a") <= 1.0
    assert trial.guard.unauthenticated == 1
    trial.now += 2 * ATTEMPT_HALF_LIFE
    assert trial.penalty("a") < 0.5


def test_200_one_shots_a_minute_leave_nothing() -> None:
    trial = trial_of(per_source=64, unauthenticated_per_source=4, unauthenticated=8)
    for _ in range(200):
        one = trial.enter("a", sent=41)
        trial.now += 0.3
        one.login_seen = True
        trial.leave(one)
    assert trial.failures("a") == 0.0
    assert trial.guard.sources == 0


@pytest.mark.parametrize(("seconds", "failures"), [(LONG_SESSION, 2.0), (LONG_SESSION - 1, 4.0)])
def test_a_long_session_halves_the_failures(seconds: float, failures: float) -> None:
    trial = trial_of()
    one = trial.enter("a")
    one.login_seen = True
    trial.now += seconds
    trial.fail("a", 4)
    trial.leave(one)
    assert trial.failures("a") == failures


def test_a_long_stay_without_a_login_does_not() -> None:
    trial = trial_of()
    one = trial.enter("a", sent=3000)
    trial.wait(LONG_SESSION)
    trial.leave(one)
    assert trial.failures("a") == 1.0


def test_who_logged_in_at_the_very_end_did() -> None:
    trial = trial_of()
    one = trial.enter("a")
    one.login_seen = True
    trial.leave(one)
    assert trial.failures("a") == 0.0


def test_an_attack_with_defaults_delays_no_newcomer() -> None:
    """20 sources that come again and again; whoever is new gets in at once and can log in."""
    trial = trial_of(per_source=64, unauthenticated_per_source=4, unauthenticated=8)
    bots = [f"203.0.113.{number}" for number in range(20)]
    owner = None
    for turn in range(4000):
        trial.now += 0.01
        trial.guard.admit(trial.now)
        trial.come(bots[turn % 20], sent=21 if turn % 3 else 1700)
        if turn >= 400 and turn % 200 == 50:
            owner = trial.enter("198.51.100.7")
        if owner is not None:
            owner.sent = 41 + turn % 200 * 12
            if turn % 200 == 150:
                assert not owner.evicted
                owner.login_seen = True
                trial.leave(owner)
        assert trial.guard.unauthenticated <= 8
        assert trial.guard.waiting <= 64
    assert trial.failures("198.51.100.7") == 0.0


class AnyGuard(RuleBasedStateMachine):
    """What must hold in whatever order things happen."""

    def __init__(self) -> None:
        super().__init__()
        self.caps = Caps(per_source=4, unauthenticated_per_source=2, unauthenticated=3, waiting=2)
        self.trial = Trial(Guard(self.caps, max_resting=3))

    def those(self, standing: Standing) -> list[One]:
        return [one for one in self.trial.inside if one.standing is standing]

    @rule(host=st.sampled_from("abcdefgh"))
    def come(self, host: str) -> None:
        logged_in = [
            one for one in self.trial.inside if one.login_seen and one.standing is not WAITS
        ]
        before = list(self.trial.inside)
        self.trial.come(host)
        assert not any(one.evicted for one in logged_in)
        gone = len([one for one in before if one.evicted])
        assert gone <= len(before)

    @precondition(lambda self: self.trial.inside)
    @rule(data=st.data(), count=st.sampled_from([1, BEGUN_BYTES, ESTABLISHED_BYTES]))
    def send(self, data: st.DataObject, count: int) -> None:
        data.draw(st.sampled_from(self.trial.inside)).sent += count

    @precondition(lambda self: self.those(Standing.UNAUTHENTICATED))
    @rule(data=st.data())
    def log_in(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.those(Standing.UNAUTHENTICATED))).login_seen = True

    @precondition(lambda self: self.trial.inside)
    @rule(data=st.data(), ending=st.sampled_from(Ending))
    def go(self, data: st.DataObject, ending: Ending) -> None:
        self.trial.leave(data.draw(st.sampled_from(self.trial.inside)), ending)

    @rule(
        seconds=st.sampled_from(
            [0.1, SILENT_GRACE, LOGIN_GRACE, ESTABLISHED_SECONDS, ATTEMPT_HALF_LIFE]
        )
    )
    def wait(self, seconds: float) -> None:
        self.trial.wait(seconds)

    @precondition(lambda self: self.those(Standing.WAITING))
    @rule(data=st.data())
    def lose_patience(self, data: st.DataObject) -> None:
        """No source is refused while another has one of the places."""
        one = data.draw(st.sampled_from(self.those(Standing.WAITING)))
        logged_in = [other for other in self.trial.inside if other.login_seen]
        self.trial.wait(0.0)
        has_place = any(
            other.host == one.host and other.standing is not Standing.WAITING
            for other in self.trial.inside
        )
        assert one.place is not None
        self.trial.guard.admit_overdue(one.place, self.trial.now)
        assert has_place or one.standing is Standing.UNAUTHENTICATED
        assert not any(other.evicted for other in logged_in)

    @invariant()
    def caps_hold(self) -> None:
        places = self.those(Standing.UNAUTHENTICATED)
        waiting = self.those(Standing.WAITING)
        assert self.trial.guard.unauthenticated == len(places) <= self.caps.unauthenticated
        assert self.trial.guard.waiting == len(waiting) <= 2
        for host in "abcdefgh":
            mine = [one for one in self.trial.inside if one.host == host and one not in waiting]
            assert len(mine) <= self.caps.per_source
            assert (
                len([one for one in places if one.host == host])
                <= self.caps.unauthenticated_per_source
            )
            assert self.trial.penalty(host) >= 0.0

    @invariant()
    def table_is_bounded(self) -> None:
        hosts = {one.host for one in self.trial.inside}
        assert len(hosts) <= self.trial.guard.sources <= len(hosts) + 3


WAITS = Standing.WAITING
TestAnyGuard = AnyGuard.TestCase


# Who logs in nowhere


def test_without_caps_on_unauthenticated_visitors_only_those_of_one_source_are_counted() -> None:
    trial = trial_of(per_source=2, unauthenticated_per_source=0, unauthenticated=0)
    first = trial.come("a")
    trial.come("a")
    third = trial.come("a")
    assert third.standing is Standing.WAITING
    assert third.place is not None
    assert not trial.guard.may_wait(third.place), "no place of theirs comes free by itself"
    assert [trial.come(f"b{number}").standing for number in range(100)] == [
        Standing.ESTABLISHED
    ] * 100
    trial.wait(ESTABLISHED_SECONDS)
    assert not first.evicted
    trial.leave(first)
    trial.wait(0)
    assert third.standing is Standing.ESTABLISHED
    assert trial.guard.unauthenticated == 0


def test_who_cannot_log_in_has_not_failed_to() -> None:
    trial = trial_of(per_source=2, unauthenticated_per_source=0, unauthenticated=0)
    for number in range(100):
        trial.leave(trial.come(f"a{number}"))
    assert trial.guard.sources == 0


@pytest.mark.parametrize(
    "caps", [{"unauthenticated": 0}, {"unauthenticated_per_source": 0}, {"per_source": 0}]
)
def test_a_cap_of_none_is_none(caps: dict[str, int]) -> None:
    trial = trial_of(
        **({"per_source": 1000, "unauthenticated_per_source": 1000, "unauthenticated": 1000} | caps)
    )
    for number in range(200):
        trial.enter("a" if "unauthenticated" not in caps else f"a{number}")
    assert trial.guard.waiting == 0


def test_caps_that_change_take_nobodys_place() -> None:
    trial = trial_of(unauthenticated=3)
    places = [trial.enter(f"a{number}") for number in range(3)]
    trial.guard.caps = replace(trial.guard.caps, unauthenticated=1)
    late = trial.come("b")
    assert late.standing is Standing.WAITING
    assert not any(one.evicted for one in places)
    for one in places:
        trial.leave(one)
    trial.wait(0)
    assert late.standing is Standing.UNAUTHENTICATED
