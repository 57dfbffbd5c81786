from __future__ import annotations

import pytest

from relay_server.guard.source_penalties import (
    ATTEMPT_HALF_LIFE,
    FAILURE_HALF_LIFE,
    MAX_FAILURES,
    MAX_RESTING,
    SourceRecord,
    penalty_level,
    remembered_penalty,
)
from relay_server.net.source_table import SourceTable

NOW = 1000.0


def failed(source: str, times: int = 1) -> SourceRecord:
    record = SourceRecord(source)
    for _ in range(times):
        record.add_failure(NOW)
    return record


@pytest.mark.parametrize(
    ("penalty", "level"), [(0.0, 0), (0.99, 0), (1.0, 1), (1.99, 1), (2.0, 2), (7.9, 3), (8.0, 4)]
)
def test_a_level_is_a_doubling(penalty: float, level: int) -> None:
    assert penalty_level(penalty) == level


def test_an_attempt_decays_within_a_minute() -> None:
    source = SourceRecord("a")
    for _ in range(4):
        source.add_attempt(NOW)
    assert source.penalty_at(NOW) == 4.0
    assert source.penalty_at(NOW + ATTEMPT_HALF_LIFE) == pytest.approx(2.0)


def test_a_failure_decays_slowly() -> None:
    source = SourceRecord("a")
    for _ in range(4):
        source.add_failure(NOW)
    assert source.penalty_at(NOW + FAILURE_HALF_LIFE) == pytest.approx(2.0)


def test_failures_have_a_bound() -> None:
    source = SourceRecord("a")
    for _ in range(int(MAX_FAILURES) + 5):
        source.add_failure(NOW)
    assert source.failures == MAX_FAILURES


@pytest.mark.parametrize("after", [0.0, 10.0, ATTEMPT_HALF_LIFE, 86400.0])
def test_a_login_leaves_nothing(after: float) -> None:
    source = SourceRecord("a")
    source.add_attempt(NOW)
    source.take_attempt_back(NOW + after, arrived=NOW)
    assert source.penalty_at(NOW + after) == pytest.approx(0.0)
    source.take_attempt_back(NOW + after, arrived=NOW + after)
    assert source.penalty_at(NOW + after) == 0.0


def test_a_long_session_halves_the_failures() -> None:
    source = SourceRecord("a")
    source.add_failure(NOW)
    source.halve_failures(NOW)
    assert source.failures == 0.5


def table_of(max_resting: int) -> SourceTable[SourceRecord]:
    return SourceTable(remembered_penalty, max_resting=max_resting)


def keep(table: SourceTable[SourceRecord], record: SourceRecord, now: float = NOW) -> None:
    table.put(record.source, record, now, active=record.visitors > 0)


def test_only_sources_with_visitors_or_a_penalty_are_remembered() -> None:
    table = table_of(8)
    record = SourceRecord("a", visitors=1)
    keep(table, record)
    assert len(table) == 1
    record.visitors = 0
    keep(table, record)
    assert len(table) == 0
    record = failed("b")
    keep(table, record)
    assert len(table) == 1
    keep(table, record, NOW + FAILURE_HALF_LIFE + 1)
    assert len(table) == 0, "half a failure is not worth it"


def test_the_lowest_penalty_is_forgotten_first_and_of_equals_the_least_recent() -> None:
    table = table_of(MAX_RESTING)
    keep(table, failed("bad", 2))
    for number in range(MAX_RESTING - 1):
        keep(table, failed(f"10.0.{number // 256}.{number % 256}"))
    assert len(table) == MAX_RESTING
    keep(table, failed("new"))
    assert len(table) == MAX_RESTING
    remembered = [table.get(source) for source in ("bad", "10.0.0.0", "10.0.0.1", "new")]
    assert [record and record.failures for record in remembered] == [2.0, None, 1.0, 1.0]
