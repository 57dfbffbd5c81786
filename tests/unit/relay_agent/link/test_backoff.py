from __future__ import annotations

import math
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from relay_agent.link.backoff import CAP_WITH_STREAMS, CAP_WITHOUT_STREAMS, FIRST_STEP, Backoff
from tests.support.agent import Highest


def take(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next_delay(away=math.inf) for _ in range(count)]


def test_the_first_retry_is_immediate_and_later_ones_double_up_to_the_cap() -> None:
    assert take(Backoff(Highest()), 9) == [0.0, FIRST_STEP, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_open_streams_lower_the_cap() -> None:
    backoff = Backoff(Highest(), cap=CAP_WITH_STREAMS)
    assert take(backoff, 8) == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_the_cap_follows_the_streams_between_two_attempts() -> None:
    backoff = Backoff(Highest(), cap=CAP_WITHOUT_STREAMS)
    take(backoff, 8)
    backoff.cap = CAP_WITH_STREAMS
    assert backoff.next_delay(away=math.inf) == 5.0
    backoff.cap = CAP_WITHOUT_STREAMS
    assert backoff.next_delay(away=math.inf) == 8.0


def test_a_success_starts_over() -> None:
    backoff = Backoff(Highest())
    take(backoff, 5)
    backoff.reset()
    assert take(backoff, 2) == [0.0, 0.25]


def test_an_absence_at_most_doubles() -> None:
    backoff = Backoff(Highest())
    take(backoff, 7)
    for away, delay in [(0.0, FIRST_STEP), (FIRST_STEP, FIRST_STEP), (2.0, 2.0), (9.0, 8.0)]:
        assert backoff.next_delay(away=away) == delay


@given(seed=st.integers(), cap=st.floats(0.0, 100.0), away=st.floats(0.0))
def test_jitter_is_full_and_bounded(seed: int, cap: float, away: float) -> None:
    jittered, ceilings = Backoff(Random(seed), cap=cap), Backoff(Highest(), cap=cap)
    for _ in range(40):
        ceiling = ceilings.next_delay(away=away)
        assert 0.0 <= jittered.next_delay(away=away) <= ceiling <= min(cap, CAP_WITHOUT_STREAMS)


def test_two_agents_do_not_come_back_together() -> None:
    assert take(Backoff(Random(1)), 6)[1:] != take(Backoff(Random(2)), 6)[1:]
