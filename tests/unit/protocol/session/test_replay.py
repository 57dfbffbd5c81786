from __future__ import annotations

import pytest

from protocol.errors import RemoteProtocolError, SessionLost
from protocol.session.replay import STREAM_RESERVE, Budget, Replay, ReplayCap
from protocol.session.stream import Sent


def sent(name: bytes) -> Sent:
    return Sent(name, 300, None, None)


def replay_of(count: int) -> Replay:
    replay = Replay()
    for number in range(count):
        replay.add(sent(b"%d" % number))
    return replay


def names(dropped: list[Sent]) -> list[bytes]:
    return [bytes(one.frame) for one in dropped]


def test_frames_are_numbered_from_zero() -> None:
    replay = replay_of(3)
    assert (replay.base, replay.cursor, replay.end) == (0, 3, 3)
    assert replay.unacked


def test_an_ack_drops_what_the_peer_has_oldest_first() -> None:
    replay = replay_of(3)
    assert names(replay.ack(2)) == [b"0", b"1"]
    assert (replay.base, replay.cursor, replay.end) == (2, 1, 3)
    assert replay.ack(2) == []
    assert names(replay.ack(3)) == [b"2"]
    assert not replay.unacked


@pytest.mark.parametrize("received", [1, 4, 2**64 - 1])
def test_an_ack_outside_what_was_sent_and_not_acked_is_refused(received: int) -> None:
    replay = replay_of(3)
    replay.ack(2)
    with pytest.raises(RemoteProtocolError):
        replay.ack(received)


def test_a_resume_sends_again_what_the_peer_lacks_and_nothing_else() -> None:
    replay = replay_of(4)
    replay.ack(1)
    assert names(replay.resume(2)) == [b"1"]
    assert not replay.unacked
    assert replay.next_again() == b"2"
    assert replay.next_again() == b"3"
    assert not replay.again
    assert replay.unacked


def test_an_ack_of_what_the_new_link_has_not_seen_is_refused() -> None:
    replay = replay_of(4)
    replay.resume(1)
    replay.next_again()
    with pytest.raises(RemoteProtocolError):
        replay.ack(3)
    assert names(replay.ack(2)) == [b"1"]
    assert replay.next_again() == b"2"


def test_a_resume_cut_short_is_resumed() -> None:
    replay = replay_of(4)
    replay.resume(1)
    replay.next_again()
    replay.resume(1)
    assert [replay.next_again() for _ in range(replay.again)] == [b"1", b"2", b"3"]
    # The peer may have frames of an earlier link that the last one did not get to.
    replay.resume(1)
    assert names(replay.resume(4)) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("received", [0, 5, 2**64 - 1])
def test_a_resume_outside_what_was_sent_and_not_acked_loses_the_session(received: int) -> None:
    replay = replay_of(4)
    replay.ack(1)
    with pytest.raises(SessionLost):
        replay.resume(received)


@pytest.mark.parametrize("received", [1, 4])
def test_a_resume_at_the_bounds_is_taken(received: int) -> None:
    replay = replay_of(4)
    replay.ack(1)
    replay.resume(received)
    assert replay.base == received


def test_discarding_gives_everything_back() -> None:
    replay = replay_of(4)
    replay.resume(1)
    assert names(replay.discard_all()) == [b"1", b"2", b"3"]
    assert (replay.base, replay.cursor, replay.end) == (4, 0, 4)


MIB = 1024 * 1024


def budget(limit: int = 4 * MIB, cap: int = 512 * MIB) -> Budget:
    return Budget(limit, ReplayCap(cap))


def test_taking_and_giving_count_for_the_session_and_the_process() -> None:
    cap = ReplayCap(96)
    one, two = Budget(64, cap), Budget(64, cap)
    one.take(30)
    two.take(20)
    assert (one.held, two.held, cap.held) == (30, 20, 50)
    assert one.shared == 64 - 64 // 8 - 30
    two.take(25)
    assert one.shared == 96 - 96 // 8 - 75, "the cap is nearer than the limit"
    two.give(45)
    assert (two.held, cap.held) == (0, 30)


def test_bulk_leaves_an_eighth_alone() -> None:
    purse = budget()
    assert purse.room(0, 1) == 4 * MIB * 7 // 8
    purse.take(4 * MIB * 7 // 8)
    assert purse.room(4 * MIB * 7 // 8, 1) == 0


def test_a_new_stream_has_its_reserve_whatever_bulk_does() -> None:
    purse = budget()
    purse.take(purse.room(0, 1))
    for count in range(2, 34):
        assert purse.room(0, count) == STREAM_RESERVE * min(1, 32 / count) // 1
        purse.take(purse.room(0, count) if count < 33 else 0)
    assert STREAM_RESERVE == 16 * 1024


def test_the_reserve_is_used_up_by_what_the_stream_itself_holds() -> None:
    purse = budget()
    purse.take(4 * MIB * 7 // 8)
    assert purse.room(STREAM_RESERVE - 1, 4) == 1
    assert purse.room(STREAM_RESERVE, 4) == 0
    assert purse.room(STREAM_RESERVE + 1, 4) == 0


def test_the_reserve_alone_is_less_than_bulk_may_have() -> None:
    purse = budget()
    assert purse.room(0, 4, reserve_only=True) == STREAM_RESERVE
    assert purse.room(STREAM_RESERVE, 4, reserve_only=True) == 0
    purse.take(4 * MIB - 100)
    assert purse.room(0, 4, reserve_only=True) == 100


def test_many_streams_share_what_is_set_aside() -> None:
    purse = budget()
    purse.take(4 * MIB * 7 // 8)
    assert purse.room(0, 4096) == 4 * MIB // 8 // 4096


def test_without_streams_there_is_still_an_answer() -> None:
    assert budget().room(0, 0) == 4 * MIB * 7 // 8


def test_the_limit_is_never_passed_not_even_by_reserves() -> None:
    # Streams that took their reserve while few were open hold more than their later share.
    purse = budget()
    purse.take(4 * MIB * 7 // 8)
    for count in range(1, 5000):
        room = purse.room(0, count)
        purse.take(room)
    assert purse.held <= 4 * MIB
    assert purse.room(0, 5000) == min(4 * MIB - purse.held, 4 * MIB // 8 // 5000)


def test_the_cap_bounds_bulk_and_reserves_too() -> None:
    cap = ReplayCap(8 * MIB)
    one, two = Budget(16 * MIB, cap), Budget(16 * MIB, cap)
    assert one.room(0, 1) == 7 * MIB
    one.take(7 * MIB)
    assert two.room(0, 1) == STREAM_RESERVE
    cap.held = 8 * MIB - 100
    assert two.room(0, 1) == 100
    cap.held = 8 * MIB
    assert two.room(0, 1) == 0
