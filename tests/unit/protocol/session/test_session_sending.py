"""Acks, the order of what is sent, and when local sockets are read for it."""

from __future__ import annotations

import math

import pytest

from protocol.errors import LocalProtocolError, ResetCode
from protocol.session.acks import ACK_DELAY, ACK_FRAMES
from protocol.session.liveness import Verdict
from protocol.session.replay import ReplayCap
from protocol.session.side import Side
from protocol.wire.frame import HEADER_SIZE, MAX_PAYLOAD
from tests.support.lone_session import (
    ACK,
    DATA,
    PING,
    PONG,
    PUBLISH,
    RESET,
    WIDE,
    WINDOW,
    Lone,
    fill,
    frame,
    publish_body,
    u8,
    u32,
    u64,
)
from tests.support.pair import SMALL, SOURCE, Pair, Profile


def test_an_ack_goes_out_at_32_frames_and_counts_ignored_ones() -> None:
    lone = Lone.agent(1)
    lone.session.reset(1, ResetCode.ABORTED)
    lone.sent()
    for _ in range(ACK_FRAMES - 2):
        lone.get(frame(DATA, 1, b"x"))
    assert lone.sent() == []
    lone.get(frame(DATA, 1, b"x"))
    assert lone.sent() == [frame(ACK, 0, u64(ACK_FRAMES))]
    assert lone.session.received == ACK_FRAMES


def test_an_ack_goes_out_after_50_ms() -> None:
    lone = Lone.agent(1)
    due = lone.now + ACK_DELAY
    assert lone.session.next_deadline() == due
    assert lone.session.handle_deadline(due - 0.001) is Verdict.ALIVE
    assert lone.sent() == []
    assert lone.session.handle_deadline(due) is Verdict.ALIVE
    assert lone.sent() == [frame(ACK, 0, u64(1))]


def test_with_the_first_stream_silence_is_questioned_sooner() -> None:
    lone = Lone(side=Side.RELAY)
    lone.get(frame(PUBLISH, 0, publish_body(1)))
    lone.now += ACK_DELAY
    lone.session.handle_deadline(lone.now)
    lone.sent()
    idle = lone.session.next_deadline()
    assert not lone.session.deadline_nearer
    lone.session.open(1, SOURCE)
    assert lone.session.deadline_nearer
    assert lone.session.next_deadline() < idle


def test_a_due_ack_behind_a_full_socket_does_not_keep_the_timer_busy() -> None:
    lone = Lone.agent(1)
    lone.now += ACK_DELAY
    lone.session.handle_deadline(lone.now)
    assert lone.session.next_deadline() > lone.now + 1


def test_a_ping_and_a_pong_carry_the_ack() -> None:
    lone = Lone.agent(1)
    lone.session.probe(lone.now)
    lone.get(frame(DATA, 1, b"x"))
    stamp = int(lone.now * 1_000_000)
    assert lone.sent() == [frame(PING, 0, u64(2, stamp))], "the count is that of sending"
    lone.get(frame(DATA, 1, b"x"))
    lone.get(frame(PING, 0, u64(1, 77)))
    assert lone.sent() == [frame(PONG, 0, u64(3, 77))]
    assert lone.session.next_deadline() >= lone.now + 1, "nothing is left to ack"


def test_acks_never_run_backwards_whatever_waited() -> None:
    pair = Pair()
    pair.opened()
    pair.agent.capacity = 0
    pair.agent.session.probe(pair.now)
    pair.relay.session.probe(pair.now)
    pair.open(1)
    pair.deliver(pair.agent)
    pair.agent.capacity = 10**9
    pair.serve(pair.agent)
    acked = [int.from_bytes(one[5:13], "big") for one in pair.agent.wire]
    assert [one[0] for one in pair.agent.wire] == [PONG, PING]
    assert acked == [2, 2]
    pair.settle()
    pair.check()


def test_order_of_sending() -> None:
    lone = Lone.agent(1)
    lone.get(frame(DATA, 1, bytes(200 * 1024)))
    lone.sent()
    lone.send(1, b"data")
    lone.session.consumed(1, 200 * 1024, kept_up=False)
    lone.session.publish("web", 80)
    for _ in range(ACK_FRAMES):
        lone.get(frame(WINDOW, 0, u32(1)))
    kinds = [one[0] for one in lone.sent()]
    assert kinds == [ACK, PUBLISH, WINDOW, DATA]


def test_what_a_new_link_has_not_seen_goes_before_what_is_new() -> None:
    lone = Lone.agent(1)
    lone.send(1, b"one")
    lone.send(1, b"two")
    first = lone.sent()
    lone.session.detach()
    lone.session.publish("web", 80)
    lone.session.attach(2, lone.now)
    again = lone.sent()
    assert again[0] == first[1] == frame(DATA, 1, b"two")
    assert again[1][0] == PUBLISH


def test_a_reset_overtakes_the_streams_unsent_data() -> None:
    lone = Lone.agent(1, 3)
    before = lone.session._send_admission.credit.credit
    lone.send(1, bytes(1000))
    lone.send(3, b"other")
    lone.session.reset(1, ResetCode.TARGET_UNREACHABLE)
    assert lone.session._send_admission.credit.credit == before - 5, "credit not used comes back"
    assert lone.sent() == [frame(RESET, 1, u8(2)), frame(DATA, 3, b"other")]


def test_a_keystroke_goes_before_bulk() -> None:
    lone = Lone.agent(1, 3)
    for _ in range(2):
        lone.send(1, bytes(60_000))
        lone.session.next_frame(lone.now)
    lone.send(1, bytes(60_000))
    lone.send(1, bytes(60_000))
    lone.send(3, b"k")
    assert [one[4] for one in lone.sent()] == [3, 1, 1]


def test_the_quantum_follows_the_record_size() -> None:
    lone = Lone.agent(1, 3)
    lone.session.record_size = 2048
    assert lone.session.record_size == lone.session.allowance(1) == 2048
    for stream in (1, 3):
        for _ in range(8):
            lone.send(stream, bytes(1024))
    order = [one[4] for one in lone.sent()]
    # Two records are a turn; without, one stream would have sent all it has first.
    assert order[:4] == [1, 1, 3, 3]


def test_a_socket_is_read_while_at_most_two_records_wait() -> None:
    lone = Lone.agent(1)
    for _ in range(2):
        assert lone.session.allowance(1) == MAX_PAYLOAD
        lone.send(1, bytes(100))
    assert lone.session.allowance(1) == 0
    assert lone.session.take_ready() == []
    assert lone.session.next_frame(lone.now)
    assert lone.session.take_ready() == [1]
    assert lone.session.take_ready() == [], "told once"
    assert lone.session.allowance(1) == MAX_PAYLOAD


def test_while_detached_sockets_are_read_into_the_budget() -> None:
    lone = Lone.agent(1)
    for _ in range(2):
        lone.send(1, bytes(100))
    assert lone.session.allowance(1) == 0
    lone.session.detach()
    assert lone.session.take_ready() == [1]
    assert lone.session.next_deadline() == math.inf
    count = 0
    while allowance := lone.session.allowance(1):
        lone.send(1, bytes(allowance))
        count += 1
    assert count == 4, "up to the stream's window"
    assert lone.session.take_ready() == []


def test_a_reader_without_credit_is_told_when_there_is_some() -> None:
    lone = Lone.agent(1, profile=SMALL)
    lone.send(1, bytes(900))
    lone.sent()
    assert lone.session.allowance(1) == 0
    assert lone.session.take_ready() == []
    lone.get(frame(WINDOW, 1, u32(7)))
    assert lone.session.take_ready() == [1]
    assert lone.session.allowance(1) == 7


def test_credit_granted_to_a_stream_with_a_full_queue_wakes_nobody() -> None:
    lone = Lone.agent(1, profile=SMALL)
    lone.send(1, bytes(450))
    lone.send(1, bytes(450))
    assert lone.session.allowance(1) == 0
    lone.get(frame(WINDOW, 1, u32(7)))
    assert lone.session.take_ready() == []
    lone.sent()
    assert lone.session.take_ready() == [1]


def test_a_reader_without_session_credit_is_told_when_there_is_some() -> None:
    lone = Lone.agent(1, 3, 5, profile=SMALL)
    lone.send(1, bytes(900))
    lone.send(3, bytes(900))
    lone.send(5, bytes(200))
    lone.sent()
    lone.ack_all()
    assert lone.session.allowance(5) == 0
    assert lone.session.take_ready() == []
    lone.get(frame(WINDOW, 0, u32(9)))
    assert lone.session.take_ready() == [5]
    assert lone.session.allowance(5) == 9


def test_at_the_budget_reading_stops_and_goes_on_with_an_ack() -> None:
    lone = Lone.agent(1, profile=WIDE)
    fill(lone, 1)
    statistics = lone.session.statistics()
    assert statistics.replay_held <= WIDE.replay_limit * 7 // 8
    assert lone.session.take_ready() == [1], "one may try; there may be a little room"
    assert lone.session.allowance(1) == 0
    lone.ack_all()
    assert lone.session.statistics().replay_held == 0
    assert lone.session.take_ready() == [1]
    assert lone.session.allowance(1) == MAX_PAYLOAD


def test_a_keystroke_never_waits_for_replay_room() -> None:
    lone = Lone.agent(1, 3, profile=WIDE)
    fill(lone, 1)
    assert lone.session.allowance(3) > 15_000
    assert not lone.send(3, b"k")
    assert lone.sent() == [frame(DATA, 3, b"k")]


def crowd() -> tuple[Lone, list[int]]:
    """Fifty streams that share a small budget, each filled up to it."""
    profile = Profile(
        streams=100,
        stream_window=8 * 1024 * 1024,
        session_window=16 * 1024 * 1024,
        replay_limit=200 * 1024,
    )
    streams = list(range(1, 101, 2))
    lone = Lone.agent(*streams, profile=profile)
    for stream in streams:
        fill(lone, stream)
    return lone, streams


def test_readers_with_nothing_to_read_do_not_keep_the_rest_asleep() -> None:
    lone, streams = crowd()
    assert lone.session.take_ready()
    for stream in streams:
        assert lone.session.allowance(stream) == 0
    # The last ack there will be: nothing else is under way.
    lone.ack_all()
    lone.now += ACK_DELAY
    lone.sent()
    assert sorted(lone.session.take_ready()) == streams


def test_not_all_readers_race_for_a_little_room() -> None:
    lone, streams = crowd()
    while len(lone.session.take_ready()) > 1:
        pass
    for stream in streams:
        lone.session.allowance(stream)
    lone.get(frame(ACK, 0, u64(lone.session._outbox.replay.base + 2)))
    assert len(lone.session.take_ready()) < 5


def test_streams_that_all_have_much_to_send_get_as_much_of_a_small_budget() -> None:
    """The readers that are just being served must not take what others wait for."""
    profile = Profile(streams=50, session_window=8 << 20, replay_limit=1 << 20)
    pair = Pair(profile, profile)
    publication = pair.publish()
    pair.settle()
    streams = [pair.open(publication) for _ in range(50)]
    pair.settle()
    for stream in streams:
        pair.write(pair.relay, stream, 1000 << 20)
    for _ in range(200):
        pair.deliver(pair.agent, 64)
        for half in pair.agent.halves.values():
            pair.read(pair.agent, half.stream, len(half.unread))
        pair.tick(0.003)
        pair.deliver(pair.relay)
    got = [half.delivered for half in pair.agent.halves.values()]
    assert max(got) < 1.5 * min(got)


def test_the_cap_of_the_process_holds_over_all_sessions() -> None:
    cap = ReplayCap(400_000)
    one = Lone(side=Side.RELAY, profile=WIDE, cap=cap)
    two = Lone(side=Side.RELAY, profile=WIDE, cap=cap)
    for lone in (one, two):
        lone.get(frame(PUBLISH, 0, publish_body(1)))
        assert lone.session.open(1, SOURCE) == 1
    fill(one, 1)
    assert 350_000 - 17_000 < cap.held <= 350_000
    fill(two, 1)
    assert two.session.statistics().replay_held <= 16 * 1024
    assert cap.held <= 400_000
    one.session.discard()
    assert two.session.take_ready() == [1]
    assert two.session.allowance(1) == MAX_PAYLOAD


def test_a_frame_is_neither_empty_nor_too_large() -> None:
    lone = Lone.agent(1)
    buffer = bytearray(HEADER_SIZE + MAX_PAYLOAD)
    for count in (0, MAX_PAYLOAD + 1):
        with pytest.raises(LocalProtocolError):
            lone.session.send(1, [buffer], count)
    assert lone.session.send(1, [buffer], MAX_PAYLOAD) == []


def test_sending_beyond_the_allowance_is_a_bug_of_ours() -> None:
    lone = Lone.agent(1, profile=SMALL)
    with pytest.raises(LocalProtocolError):
        lone.send(1, bytes(901))
