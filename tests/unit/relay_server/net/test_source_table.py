from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_server.net.source_table import BUCKETS, SourceTable

NOW = 1000.0


@dataclass(eq=False)
class Entry:
    weight: float = 1.0


class Scale:
    """Weighs entries, and counts how often it is asked."""

    def __init__(self) -> None:
        self.weighed = 0

    def __call__(self, entry: Entry, now: float) -> float:
        assert now == NOW
        self.weighed += 1
        return entry.weight


def table_of(max_resting: int) -> SourceTable[Entry]:
    return SourceTable(Scale(), max_resting=max_resting)


def rest(table: SourceTable[Entry], source: str, weight: float = 1.0) -> None:
    table.put(source, Entry(weight), NOW, active=False)


def known(table: SourceTable[Entry], sources: str) -> str:
    return "".join(source for source in sources if table.get(source) is not None)


def test_an_entry_is_found_until_it_weighs_nothing() -> None:
    table, entry = table_of(8), Entry()
    assert table.get("a") is None
    table.put("a", entry, NOW, active=True)
    assert table.get("a") is entry
    table.put("a", entry, NOW, active=False)
    assert table.get("a") is entry
    assert len(table) == 1
    entry.weight = 0.0
    assert table.get("a") is entry, "it is weighed only when it is put there"
    table.put("a", entry, NOW, active=False)
    assert table.get("a") is None
    assert len(table) == 0


def test_an_active_source_is_never_forgotten_whatever_it_weighs() -> None:
    table = table_of(2)
    for source in "abcd":
        table.put(source, Entry(0.0), NOW, active=True)
    for source in "efg":
        rest(table, source)
    assert known(table, "abcdefg") == "abcdfg"
    assert len(table) == 6


def test_of_equals_the_least_recently_used_is_forgotten() -> None:
    table = table_of(3)
    for source in "abc":
        rest(table, source)
    rest(table, "a")  # used again
    assert len(table) == 3
    rest(table, "d")
    assert known(table, "abcd") == "acd"


def test_the_lightest_is_forgotten_before_older_ones() -> None:
    table = table_of(3)
    rest(table, "a", 20.0)
    rest(table, "b", 3.0)
    rest(table, "c", 9.0)
    rest(table, "d", 5.0)
    assert known(table, "abcd") == "acd"
    rest(table, "e", 2.0)
    assert known(table, "acde") == "acd", "the newest itself may be the lightest"


def test_one_that_has_become_light_is_forgotten_though_it_was_heavy_when_it_was_put() -> None:
    table, faded = table_of(2), Entry(60.0)
    table.put("a", faded, NOW, active=False)
    rest(table, "b", 4.0)
    faded.weight = 0.5
    rest(table, "c", 4.0)
    assert known(table, "abc") == "bc"


@pytest.mark.parametrize("weight", [0.001, 0.999, 1.0, 63.0, 64.0, 1e9])
def test_any_weight_above_zero_has_a_bucket(weight: float) -> None:
    table = table_of(1)
    rest(table, "a", weight)
    assert known(table, "a") == "a"
    rest(table, "b", weight)
    assert known(table, "ab") == "b"


@pytest.mark.parametrize("size", [16, 4096])
def test_a_full_table_costs_no_more_than_a_small_one(size: int) -> None:
    scale = Scale()
    table = SourceTable(scale, max_resting=size)
    for number in range(size):
        table.put(f"a{number}", Entry(number % 200), NOW, active=False)
    before = scale.weighed
    for number in range(1000):
        table.put(f"b{number}", Entry(1 + number % 200), NOW, active=False)
    assert scale.weighed - before <= 1000 * (1 + BUCKETS)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.booleans(), st.sampled_from([0, 0.5, 1, 3, 9])),
        max_size=60,
    )
)
def test_the_bound_holds_in_whatever_order_sources_come_and_go(
    steps: list[tuple[str, bool, float]],
) -> None:
    table, active = table_of(3), set[str]()
    for source, is_active, weight in steps:
        table.put(source, Entry(weight), NOW, active=is_active)
        (active.add if is_active else active.discard)(source)
        assert active <= set(known(table, "abcdefgh"))
        assert len(table) == len(known(table, "abcdefgh")) <= len(active) + 3
