"""Each timer at its edge. Times start at 100 s so that a 0 taken for "never" would show."""

from __future__ import annotations

import math

import pytest

from protocol.session.liveness import Liveness, Verdict

T = 100.0
EPS = 0.001


def judge(
    liveness: Liveness, now: float, *, streams: bool = True, unacked: float | None = None
) -> Verdict:
    return liveness.judge(now, streams=streams, unacked_since=unacked)


def deadline(liveness: Liveness, *, streams: bool = True, unacked: float | None = None) -> float:
    return liveness.deadline(streams=streams, unacked_since=unacked)


def with_rtt(rtt: float, now: float = T) -> Liveness:
    liveness = Liveness(now, pings_first=True)
    liveness.answered(liveness.stamp(now - rtt), now)
    assert liveness.rtt == pytest.approx(rtt, abs=1e-5)
    return liveness


@pytest.mark.parametrize(("streams", "silence"), [(True, 4.0), (False, 20.0)])
def test_silence_is_questioned(streams: bool, silence: float) -> None:
    liveness = Liveness(T, pings_first=True)
    assert deadline(liveness, streams=streams) == T + silence
    assert judge(liveness, T + silence - EPS, streams=streams) is Verdict.ALIVE
    assert not liveness.questioned
    assert judge(liveness, T + silence, streams=streams) is Verdict.PING
    assert liveness.questioned


@pytest.mark.parametrize(("streams", "silence"), [(True, 5.0), (False, 21.0)])
def test_the_relay_lets_the_agent_ask_first(streams: bool, silence: float) -> None:
    assert deadline(Liveness(T, pings_first=False), streams=streams) == T + silence


def test_doubt_is_told_once_and_again_after_life() -> None:
    liveness = Liveness(T, pings_first=True)
    assert judge(liveness, T + 4) is Verdict.PING
    assert not liveness.suspected
    assert judge(liveness, T + 5) is Verdict.SUSPECT
    assert liveness.suspected
    assert judge(liveness, T + 5.5) is Verdict.ALIVE
    assert liveness.suspected
    liveness.heard(T + 6)
    assert not liveness.suspected
    assert judge(liveness, T + 10) is Verdict.PING
    assert judge(liveness, T + 11) is Verdict.SUSPECT


def test_any_byte_starts_silence_anew() -> None:
    liveness = Liveness(T, pings_first=True)
    liveness.heard(T + 3.9)
    assert judge(liveness, T + 7.8) is Verdict.ALIVE
    assert judge(liveness, T + 7.9) is Verdict.PING


@pytest.mark.parametrize(
    ("rtt", "doubt_after", "dead_after"), [(0.0, 1.0, 3.0), (0.7, 1.4, 3.0), (1.0, 2.0, 4.0)]
)
def test_a_ping_without_an_answer_is_doubt_and_then_death(
    rtt: float, doubt_after: float, dead_after: float
) -> None:
    liveness = with_rtt(rtt)
    assert judge(liveness, T + 4) is Verdict.PING
    due = deadline(liveness)
    assert due == pytest.approx(T + 4 + doubt_after, abs=1e-4)
    assert judge(liveness, due - EPS) is Verdict.ALIVE
    assert judge(liveness, due) is Verdict.SUSPECT
    due = deadline(liveness)
    assert due == pytest.approx(T + 4 + dead_after, abs=1e-4)
    assert judge(liveness, due - EPS) is Verdict.ALIVE
    assert judge(liveness, due) is Verdict.DEAD


def test_any_byte_after_the_ping_is_life() -> None:
    liveness = Liveness(T, pings_first=True)
    judge(liveness, T + 4)
    liveness.heard(T + 6.9)
    assert not liveness.questioned
    assert judge(liveness, T + 7.1) is Verdict.ALIVE
    assert deadline(liveness) == T + 6.9 + 4


def test_the_kernel_s_minimum_counts_once_it_has_one() -> None:
    liveness = Liveness(0.0, pings_first=True)
    liveness.measured(0.0)
    assert liveness.min_rtt == 0.0
    liveness.measured(0.15)
    assert liveness.min_rtt == 0.15


@pytest.mark.parametrize(("rtt", "suspect_after"), [(0.0, 2.0), (0.3, 2.0), (0.5, 3.0)])
def test_unacked_data_with_nothing_heard_is_questioned_sooner(
    rtt: float, suspect_after: float
) -> None:
    liveness = with_rtt(rtt)
    due = deadline(liveness, unacked=T)
    assert due == pytest.approx(T + suspect_after, abs=1e-4)
    assert judge(liveness, due - EPS, unacked=T) is Verdict.ALIVE
    assert judge(liveness, due, unacked=T) is Verdict.SUSPECT
    assert liveness.questioned


def test_suspicion_counts_from_the_later_of_heard_and_sent() -> None:
    liveness = Liveness(T, pings_first=True)
    assert deadline(liveness, unacked=T + 1) == T + 3
    liveness.heard(T + 1.5)
    assert deadline(liveness, unacked=T + 1) == T + 3.5


def test_late_data_does_not_put_off_the_ping_of_silence() -> None:
    liveness = Liveness(T, pings_first=True)
    assert deadline(liveness, unacked=T + 3) == T + 4
    assert judge(liveness, T + 4, unacked=T + 3) is Verdict.PING


def test_suspicion_is_death_like_any_ping_without_an_answer() -> None:
    liveness = Liveness(T, pings_first=True)
    assert judge(liveness, T + 2, unacked=T) is Verdict.SUSPECT
    assert judge(liveness, T + 5 - EPS, unacked=T) is Verdict.ALIVE
    assert judge(liveness, T + 5, unacked=T) is Verdict.DEAD


def doubted() -> Liveness:
    """Asked at T + 4, in doubt since T + 5."""
    liveness = Liveness(T, pings_first=True)
    assert judge(liveness, T + 4) is Verdict.PING
    assert judge(liveness, T + 5) is Verdict.SUSPECT
    return liveness


def test_progress_puts_death_off() -> None:
    liveness = doubted()
    liveness.progress(T + 6)
    assert deadline(liveness) == T + 9
    assert judge(liveness, T + 7) is Verdict.ALIVE
    assert judge(liveness, T + 9 - EPS) is Verdict.ALIVE
    assert judge(liveness, T + 9) is Verdict.DEAD


def test_progress_puts_death_off_to_30_s_and_no_further() -> None:
    liveness = doubted()
    now = T + 5
    while now < T + 34 - 1:
        now += 0.5
        liveness.progress(now)
        assert judge(liveness, now) is Verdict.ALIVE
    assert deadline(liveness) == T + 34
    assert judge(liveness, T + 34 - EPS) is Verdict.ALIVE
    assert judge(liveness, T + 34) is Verdict.DEAD


def test_progress_before_the_ping_counts_for_nothing() -> None:
    liveness = Liveness(T, pings_first=True)
    liveness.progress(T + 4)
    assert judge(liveness, T + 4) is Verdict.PING
    assert judge(liveness, T + 5) is Verdict.SUSPECT
    assert deadline(liveness) == T + 7


def test_a_timer_more_than_a_second_late_judges_nothing() -> None:
    liveness = Liveness(T, pings_first=True)
    assert judge(liveness, T + 4) is Verdict.PING
    # Stopped for an hour, then asked before the sockets were read.
    assert judge(liveness, T + 3600) is Verdict.PING
    assert judge(liveness, T + 3601) is Verdict.SUSPECT
    assert deadline(liveness) == T + 3603
    assert judge(liveness, T + 3603 - EPS) is Verdict.ALIVE
    assert judge(liveness, T + 3603) is Verdict.DEAD


@pytest.mark.parametrize(("late", "verdict"), [(1.0, Verdict.DEAD), (1.01, Verdict.PING)])
def test_a_second_late_is_the_edge_for_death(late: float, verdict: Verdict) -> None:
    assert judge(doubted(), T + 7 + late) is verdict


@pytest.mark.parametrize(("late", "verdict"), [(1.0, Verdict.SUSPECT), (1.01, Verdict.PING)])
def test_a_second_late_is_the_edge_for_suspicion(late: float, verdict: Verdict) -> None:
    liveness = Liveness(T, pings_first=True)
    assert judge(liveness, T + 2 + late, unacked=T) is verdict


def test_a_question_of_the_callers_own_counts_as_a_ping() -> None:
    liveness = Liveness(T, pings_first=True)
    liveness.question(T + 1)
    assert liveness.questioned
    liveness.question(T + 2)
    assert deadline(liveness) == T + 2, "the first one stands"
    assert judge(liveness, T + 2) is Verdict.SUSPECT
    assert judge(liveness, T + 4) is Verdict.DEAD


def test_round_trips_are_smoothed_and_the_least_is_kept() -> None:
    liveness = Liveness(T, pings_first=True)
    assert (liveness.rtt, liveness.min_rtt) == (0.0, 0.0)
    liveness.answered(liveness.stamp(T), T + 0.8)
    assert liveness.rtt == pytest.approx(0.8)
    liveness.answered(liveness.stamp(T), T + 0.4)
    assert liveness.rtt == pytest.approx(0.8 - 0.4 / 8)
    assert liveness.min_rtt == pytest.approx(0.4)
    liveness.answered(liveness.stamp(T), T + 0.6)
    assert liveness.min_rtt == pytest.approx(0.4)


@pytest.mark.parametrize("stamp", [0, 10**18, 2**64 - 1, int((T + 1) * 1e6), int((T - 60) * 1e6)])
def test_a_stamp_that_cannot_be_ours_is_ignored(stamp: int) -> None:
    liveness = Liveness(T, pings_first=True)
    liveness.answered(stamp, T)
    assert (liveness.rtt, liveness.min_rtt) == (0.0, 0.0)


def test_a_stamp_is_never_negative() -> None:
    assert Liveness(-5.0, pings_first=True).stamp(-5.0) == 0


def test_there_is_always_a_deadline() -> None:
    liveness = Liveness(T, pings_first=True)
    for unacked in (None, T):
        for streams in (True, False):
            assert deadline(liveness, streams=streams, unacked=unacked) < math.inf


def test_a_path_that_takes_long_for_one_record_is_not_in_doubt() -> None:
    """64 KiB at 100 kbit/s: our PING waits behind it, and a rival would begin it all over."""
    liveness = Liveness(T, pings_first=True)
    now = T
    verdicts = []
    while now < T + 6.5:
        now += 0.25
        liveness.progress(now - 0.1)
        verdicts.append(judge(liveness, now, unacked=T))
    assert verdicts.count(Verdict.PING) == 1
    assert Verdict.SUSPECT not in verdicts
    # It stands still: doubt a second later.
    assert deadline(liveness, unacked=T) == pytest.approx(now - 0.1 + 1)
    assert judge(liveness, now + 0.9, unacked=T) is Verdict.SUSPECT
