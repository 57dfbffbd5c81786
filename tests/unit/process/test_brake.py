from __future__ import annotations

from protocol.process.brake import LINES, PERIOD, Brake


def test_so_many_a_period_and_the_rest_is_counted() -> None:
    brake = Brake()
    assert [brake.allows(100.0) for _ in range(LINES + 3)] == [True] * LINES + [False] * 3
    assert brake.ends == 100.0 + PERIOD
    assert brake.suppressed == 3
    assert not brake.allows(99.9 + PERIOD)
    assert brake.take_suppressed() == 4
    assert brake.take_suppressed() == 0


def test_the_next_period_begins_with_the_next_line() -> None:
    brake = Brake(lines=1, period=10.0)
    assert brake.allows(0.0)
    assert not brake.allows(1.0)
    assert brake.allows(10.0)
    assert not brake.allows(19.9)
    assert brake.allows(25.0)
    assert brake.ends == 35.0
    assert brake.suppressed == 2, "counts are kept until somebody asks"
