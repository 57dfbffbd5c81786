from __future__ import annotations

import pytest

from protocol.transport.pace import LOOKS, SPAN, UNKNOWN, UNSENT_MOST, Pace
from protocol.wire.frame import HEADER_SIZE, MAX_PAYLOAD
from protocol.wire.record import RECORD_OVERHEAD

MOST = 512 * 1024
SEGMENT = 1448
OVERHEAD = HEADER_SIZE + RECORD_OVERHEAD
MBIT = 125_000


def pace_at(*rates: float) -> Pace:
    pace = Pace(MOST)
    for rate in rates:
        pace.learn(int(rate), app_limited=False, segment=SEGMENT)
    return pace


def test_as_long_as_nothing_is_known_little_is_sent_at_once() -> None:
    pace = Pace(MOST)
    assert pace.record == pace.batch == pace.unsent == UNKNOWN
    assert pace.bounded
    assert not pace.learn(0, app_limited=False, segment=SEGMENT)  # an old kernel does not say
    assert pace.record == UNKNOWN


def test_on_the_slowest_paths_a_record_is_a_segment_and_two_may_wait() -> None:
    pace = pace_at(MBIT)
    assert pace.record + OVERHEAD == SEGMENT
    assert pace.batch == SEGMENT
    assert pace.unsent == 2 * SEGMENT


def test_in_between_each_is_five_milliseconds() -> None:
    pace = pace_at(20 * MBIT)
    assert pace.record == pace.batch - OVERHEAD == pace.unsent == 20 * MBIT * SPAN
    pace = pace_at(200 * MBIT)
    assert pace.record == MAX_PAYLOAD
    assert pace.batch == pace.unsent == 200 * MBIT * SPAN
    assert pace.bounded


def test_on_the_fastest_nothing_holds_it_back() -> None:
    pace = pace_at(8000 * MBIT)
    assert pace.record == MAX_PAYLOAD
    assert pace.batch == MOST
    assert pace.unsent == UNSENT_MOST
    assert not pace.bounded


def test_the_highest_of_the_last_looks_counts() -> None:
    assert pace_at(*[20 * MBIT] + [MBIT] * (LOOKS - 1)).unsent == 20 * MBIT * SPAN
    assert pace_at(*[20 * MBIT] + [MBIT] * LOOKS).unsent == 2 * SEGMENT


def test_what_little_there_was_to_send_says_nothing_about_the_path() -> None:
    pace = pace_at(20 * MBIT)
    for _ in range(LOOKS):
        assert not pace.learn(MBIT, app_limited=True, segment=SEGMENT)
    assert pace.unsent == 20 * MBIT * SPAN
    assert pace.learn(40 * MBIT, app_limited=True, segment=SEGMENT)
    assert pace.unsent == 40 * MBIT * SPAN


@pytest.mark.parametrize(("rate", "counts"), [(UNKNOWN / SPAN, False), (UNKNOWN / SPAN + 1, True)])
def test_typing_does_not_make_an_unknown_path_a_slow_one(rate: float, counts: bool) -> None:
    assert Pace(MOST).learn(int(rate), app_limited=True, segment=SEGMENT) == counts


def test_a_tiny_segment_leaves_a_byte_for_data() -> None:
    pace = Pace(MOST)
    pace.learn(1, app_limited=False, segment=8)
    assert pace.record == 1
