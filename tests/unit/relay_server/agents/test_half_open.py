from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay_server.agents import half_open
from relay_server.agents.half_open import Bounds, Caller, HalfOpenLimit


def enter(
    limit: HalfOpenLimit, host: str, now: float = 0.0, evicted: list[str] | None = None
) -> Caller:
    caller = maybe_enter(limit, host, now, evicted)
    assert caller is not None
    return caller


def maybe_enter(
    limit: HalfOpenLimit, host: str, now: float = 0.0, evicted: list[str] | None = None
) -> Caller | None:
    names = [] if evicted is None else evicted
    return limit.enter(host, now, lambda: names.append(host))


def limit_of(
    *, total: int = 8, per_source: int = 8, attempts: int = 100, per_second: float = 1.0
) -> HalfOpenLimit:
    bounds = Bounds(total=total, per_source=per_source, attempts=attempts, per_second=per_second)
    return HalfOpenLimit(lambda: bounds)


def test_a_source_has_so_many_places() -> None:
    limit = limit_of(per_source=2)
    first = enter(limit, "a")
    enter(limit, "a")
    assert maybe_enter(limit, "a") is None
    enter(limit, "b")
    limit.leave(first, 0.0, known=False)
    enter(limit, "a")
    assert len(limit) == 3


def test_the_addresses_of_one_subscriber_share_their_places() -> None:
    limit = limit_of(per_source=1)
    enter(limit, "2001:db8::1")
    assert maybe_enter(limit, "2001:db8::2") is None
    enter(limit, "2001:db8:0:1::2")


def test_at_the_bound_of_all_the_oldest_unproved_goes() -> None:
    limit, evicted = limit_of(total=3), list[str]()
    limit.prove(enter(limit, "a", evicted=evicted))
    enter(limit, "b", evicted=evicted)
    enter(limit, "c", evicted=evicted)
    assert evicted == []
    enter(limit, "d", evicted=evicted)
    enter(limit, "e", evicted=evicted)
    assert evicted == ["b", "c"]
    assert len(limit) == 3


def test_where_all_are_proved_the_oldest_of_them_goes() -> None:
    limit, evicted = limit_of(total=2), list[str]()
    for host in ("a", "b"):
        limit.prove(enter(limit, host, evicted=evicted))
    enter(limit, "c", evicted=evicted)
    assert evicted == ["a"]
    enter(limit, "d", evicted=evicted)
    assert evicted == ["a", "c"]


def test_whoever_was_evicted_may_still_leave_and_prove() -> None:
    limit = limit_of(total=1)
    first = enter(limit, "a")
    second = enter(limit, "a")
    limit.prove(first)
    limit.leave(first, 0.0, known=False)
    assert len(limit) == 1
    limit.leave(second, 0.0, known=False)
    limit.leave(second, 0.0, known=False)
    assert len(limit) == 0


def test_a_source_that_is_at_its_bound_evicts_nobody() -> None:
    limit, evicted = limit_of(total=2, per_source=1), list[str]()
    enter(limit, "a", evicted=evicted)
    enter(limit, "b", evicted=evicted)
    assert maybe_enter(limit, "b", evicted=evicted) is None
    assert evicted == []


def test_failures_empty_the_bucket_and_time_fills_it() -> None:
    limit = limit_of(attempts=2, per_second=0.5)
    for _ in range(2):
        limit.leave(enter(limit, "a", 10.0), 10.0, known=False)
    assert maybe_enter(limit, "a", 10.0) is None
    assert maybe_enter(limit, "a", 11.9) is None
    limit.leave(enter(limit, "a", 12.0), 12.0, known=False)
    assert maybe_enter(limit, "a", 12.0) is None
    for _ in range(2):  # filled up to the brim and no further
        limit.leave(enter(limit, "a", 1000.0), 1000.0, known=False)
    assert maybe_enter(limit, "a", 1000.0) is None


def test_a_success_costs_nothing() -> None:
    limit = limit_of(attempts=1, per_second=0.001)
    for _ in range(1000):
        limit.leave(enter(limit, "a"), 0.0, known=True)
    assert limit.sources == 0


def test_being_turned_away_costs_nothing() -> None:
    limit = limit_of(per_source=1, attempts=2)
    caller = enter(limit, "a")
    for _ in range(100):
        assert maybe_enter(limit, "a") is None
    limit.leave(caller, 0.0, known=False)
    enter(limit, "a")


def test_a_fleet_behind_one_address_gets_in() -> None:
    """2,000 agents dial at once; those turned away come again, and no time needs to pass."""
    limit = limit_of(total=512, per_source=32, attempts=64, per_second=2.0)
    waiting = 2000
    rounds = 0
    while waiting:
        callers = [maybe_enter(limit, "203.0.113.9") for _ in range(waiting)]
        inside = [caller for caller in callers if caller is not None]
        for caller in inside:
            limit.prove(caller)
            limit.leave(caller, 0.0, known=True)
        waiting -= len(inside)
        rounds += 1
    assert rounds == 63  # 32 at a time


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_open, "MAX_RESTING", 3)
    limit = limit_of(attempts=1, per_second=0.001)
    for host in "abcd":
        limit.leave(enter(limit, host), 0.0, known=False)
    assert limit.sources == 3
    enter(limit, "a")  # forgotten, so afresh
    for host in "bcd":
        assert maybe_enter(limit, host) is None


class HalfOpenModel(RuleBasedStateMachine):
    """Bounds hold and counts add up, whatever comes in which order."""

    TOTAL, PER_SOURCE, ATTEMPTS = 4, 2, 3

    def __init__(self) -> None:
        super().__init__()
        self.limit = limit_of(total=self.TOTAL, per_source=self.PER_SOURCE, attempts=self.ATTEMPTS)
        self.now = 0.0
        self.inside: dict[Caller, str] = {}
        self.evicted: list[Caller] = []

    @rule(host=st.sampled_from("abcd"))
    def enter(self, host: str) -> None:
        place: list[Caller] = []

        def evict() -> None:
            del self.inside[place[0]]
            self.evicted.append(place[0])

        caller = self.limit.enter(host, self.now, evict)
        if caller is not None:
            place.append(caller)
            self.inside[caller] = host

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), known=st.booleans(), proved=st.booleans())
    def leave(self, data: st.DataObject, known: bool, proved: bool) -> None:
        caller = data.draw(st.sampled_from(list(self.inside)))
        if proved:
            self.limit.prove(caller)
        self.limit.leave(caller, self.now, known=known)
        del self.inside[caller]

    @precondition(lambda self: self.evicted)
    @rule()
    def leave_after_eviction(self) -> None:
        self.limit.leave(self.evicted.pop(), self.now, known=False)

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.limit) == len(self.inside) <= self.TOTAL
        for host in "abcd":
            assert list(self.inside.values()).count(host) <= self.PER_SOURCE
        assert self.limit.sources <= 4


TestHalfOpenModel = HalfOpenModel.TestCase


def test_bounds_that_change_hold_for_who_comes_next() -> None:
    bounds = Bounds(total=9, per_source=2, attempts=100, per_second=1.0)
    limit = HalfOpenLimit(lambda: bounds)
    callers = [limit.enter("a", 0.0, lambda: None) for _ in range(2)]
    assert None not in callers
    assert limit.enter("a", 0.0, lambda: None) is None
    bounds = replace(bounds, per_source=3, attempts=64)
    assert limit.enter("a", 0.0, lambda: None) is not None
    bounds = replace(bounds, per_source=1)
    assert limit.enter("a", 0.0, lambda: None) is None
    assert len(limit) == 3
