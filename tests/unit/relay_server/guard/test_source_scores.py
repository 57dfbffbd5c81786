from __future__ import annotations

import pytest

from relay_server.guard.source_scores import (
    HALF_LIFE,
    MAX_RESTING,
    TRY_HALF_LIFE,
    WORST,
    Source,
    Sources,
    grade_of,
)

NOW = 1000.0


def failed(sources: Sources, host: str, now: float, times: int = 1) -> Source:
    source = sources.of(host)
    for _ in range(times):
        source.fail(now)
    sources.remember(source, now)
    return source


@pytest.mark.parametrize(
    ("burden", "grade"), [(0.0, 0), (0.99, 0), (1.0, 1), (1.99, 1), (2.0, 2), (7.9, 3), (8.0, 4)]
)
def test_a_grade_is_a_doubling(burden: float, grade: int) -> None:
    assert grade_of(burden) == grade


def test_who_came_is_a_burden_that_fades_in_a_minute() -> None:
    source = Source("a")
    for _ in range(4):
        source.come(NOW)
    assert source.burden_at(NOW) == 4.0
    assert source.burden_at(NOW + TRY_HALF_LIFE) == pytest.approx(2.0)


def test_who_ended_without_a_login_is_one_that_fades_slowly() -> None:
    source = Source("a")
    for _ in range(4):
        source.fail(NOW)
    assert source.burden_at(NOW + HALF_LIFE) == pytest.approx(2.0)


def test_a_score_has_a_bound() -> None:
    source = Source("a")
    for _ in range(int(WORST) + 5):
        source.fail(NOW)
    assert source.score == WORST


@pytest.mark.parametrize("after", [0.0, 10.0, TRY_HALF_LIFE, 86400.0])
def test_a_login_leaves_nothing(after: float) -> None:
    source = Source("a")
    source.come(NOW)
    source.log_in(NOW + after, came=NOW)
    assert source.burden_at(NOW + after) == pytest.approx(0.0)
    source.log_in(NOW + after, came=NOW + after)
    assert source.burden_at(NOW + after) == 0.0


def test_a_long_session_halves_the_score() -> None:
    source = Source("a")
    source.fail(NOW)
    source.heal(NOW)
    assert source.score == 0.5


def test_hosts_of_one_64_are_one_source() -> None:
    sources = Sources(8)
    failed(sources, "2001:db8:1:2::1", NOW)
    assert sources.of("2001:db8:1:2:ffff::2").burden_at(NOW) == 1.0
    assert sources.of("2001:db8:1:3::1").burden_at(NOW) == 0.0


def test_only_sources_with_visitors_or_a_burden_are_remembered() -> None:
    sources = Sources(8)
    source = sources.of("a")
    source.visitors = 1
    sources.remember(source, NOW)
    assert len(sources) == 1
    source.visitors = 0
    sources.remember(source, NOW)
    assert len(sources) == 0
    failed(sources, "b", NOW)
    assert len(sources) == 1
    sources.remember(sources.of("b"), NOW + HALF_LIFE + 1)
    assert len(sources) == 0, "half a point is not worth it"


def test_the_best_healed_is_forgotten_first_and_the_least_recent_of_equals() -> None:
    sources = Sources(MAX_RESTING)
    failed(sources, "bad", NOW, 2)
    for number in range(MAX_RESTING - 1):
        failed(sources, f"10.0.{number // 256}.{number % 256}", NOW)
    assert len(sources) == MAX_RESTING
    failed(sources, "new", NOW)
    assert len(sources) == MAX_RESTING
    assert sources.of("bad").score == 2.0
    assert sources.of("10.0.0.0").score == 0.0
    assert sources.of("10.0.0.1").score == sources.of("new").score == 1.0
