from __future__ import annotations

from protocol.process.rate_limit import LINES, PERIOD, RateLimit


def test_so_many_a_period_and_the_rest_is_counted() -> None:
    limit = RateLimit()
    assert [limit.allows(100.0) for _ in range(LINES + 3)] == [True] * LINES + [False] * 3
    assert limit.ends == 100.0 + PERIOD
    assert limit.suppressed == 3
    assert not limit.allows(99.9 + PERIOD)
    assert limit.take_suppressed() == 4
    assert limit.take_suppressed() == 0


def test_the_next_period_begins_with_the_next_line() -> None:
    limit = RateLimit(lines=1, period=10.0)
    assert limit.allows(0.0)
    assert not limit.allows(1.0)
    assert limit.allows(10.0)
    assert not limit.allows(19.9)
    assert limit.allows(25.0)
    assert limit.ends == 35.0
    assert limit.suppressed == 2, "counts are kept until somebody asks"
