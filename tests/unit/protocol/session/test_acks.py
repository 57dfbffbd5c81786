from __future__ import annotations

import math

from protocol.session.acks import ACK_BYTES, ACK_DELAY, ACK_FRAMES, Acks


def test_an_ack_is_due_at_32_frames() -> None:
    acks = Acks()
    for _ in range(ACK_FRAMES - 1):
        acks.count(5, 10.0)
    assert not acks.due
    acks.count(5, 10.0)
    assert acks.due
    assert acks.received == ACK_FRAMES == 32


def test_an_ack_is_due_at_256_kib() -> None:
    acks = Acks()
    acks.count(ACK_BYTES - 1, 10.0)
    assert not acks.due
    acks.count(1, 10.0)
    assert acks.due
    assert ACK_BYTES == 256 * 1024


def test_an_ack_is_due_50_ms_after_the_first_unacked_frame() -> None:
    acks = Acks()
    assert acks.deadline == math.inf
    acks.count(5, 10.0)
    acks.count(5, 10.04)
    assert acks.deadline == 10.0 + ACK_DELAY
    acks.check(10.0499)
    assert not acks.due
    acks.check(10.0 + ACK_DELAY)
    assert acks.due


def test_a_deadline_that_was_handled_does_not_come_again() -> None:
    # The link may be full for long: the timer would otherwise turn without end.
    acks = Acks()
    acks.count(5, 10.0)
    acks.check(10.1)
    assert acks.deadline == math.inf
    acks.check(10.2)
    assert acks.due


def test_without_frames_nothing_is_due() -> None:
    acks = Acks()
    acks.check(1e9)
    assert not acks.due


def test_settling_starts_anew_and_keeps_the_count() -> None:
    acks = Acks()
    for _ in range(ACK_FRAMES):
        acks.count(5, 10.0)
    acks.settle()
    assert not acks.due
    assert acks.deadline == math.inf
    assert acks.received == ACK_FRAMES
    acks.count(ACK_BYTES - 1, 20.0)
    assert not acks.due
    assert acks.deadline == 20.0 + ACK_DELAY
