"""A stream alone: every (state, input) pair of both directions against the tables below."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.session.stream import End, Sent, Stream
from protocol.session.window import ReceiveWindow, SendWindow

LOCAL, REMOTE = LocalProtocolError, RemoteProtocolError

# (state, input) → the state after it, or the error it raises.
SENDING: dict[tuple[End, str], End | type[Exception]] = {
    (End.OPEN, "check_open_for_sending"): End.OPEN,
    (End.ENDING, "check_open_for_sending"): LOCAL,
    (End.ENDED, "check_open_for_sending"): LOCAL,
    (End.DONE, "check_open_for_sending"): LOCAL,
    (End.OPEN, "fin_queued"): End.ENDING,
    (End.ENDING, "fin_queued"): LOCAL,
    (End.ENDED, "fin_queued"): LOCAL,
    (End.DONE, "fin_queued"): LOCAL,
    (End.OPEN, "fin_sent"): End.OPEN,
    (End.ENDING, "fin_sent"): End.ENDED,
    (End.ENDED, "fin_sent"): End.ENDED,
    (End.DONE, "fin_sent"): End.DONE,
    (End.OPEN, "fin_acked"): End.OPEN,
    (End.ENDING, "fin_acked"): End.ENDING,
    (End.ENDED, "fin_acked"): End.DONE,
    (End.DONE, "fin_acked"): End.DONE,
}
# DONE by a delivered FIN: to one that was abandoned the session gives nothing.
RECEIVING: dict[tuple[End, str], End | type[Exception]] = {
    (End.OPEN, "accept"): End.OPEN,
    (End.ENDED, "accept"): REMOTE,
    (End.DONE, "accept"): REMOTE,
    (End.OPEN, "fin_came"): End.ENDED,
    (End.ENDED, "fin_came"): REMOTE,
    (End.DONE, "fin_came"): REMOTE,
    (End.OPEN, "fin_delivered"): LOCAL,
    (End.ENDED, "fin_delivered"): End.DONE,
    (End.DONE, "fin_delivered"): LOCAL,
    (End.OPEN, "settle_all"): End.OPEN,
    (End.ENDED, "settle_all"): End.ENDED,
    (End.DONE, "settle_all"): End.DONE,
}
ARGUMENTS = {"accept": (10,)}


def stream() -> Stream:
    return Stream(1, SendWindow(1000), ReceiveWindow(1000))


def apply(state: Stream, name: str) -> None:
    call: Callable[..., object] = getattr(state, name)
    call(*ARGUMENTS.get(name, ()))


@pytest.mark.parametrize(
    ("direction", "before", "name", "after"),
    [
        *(("sending", before, name, after) for (before, name), after in SENDING.items()),
        *(("receiving", before, name, after) for (before, name), after in RECEIVING.items()),
    ],
)
def test_each_call_in_each_state(
    direction: str, before: End, name: str, after: End | type[Exception]
) -> None:
    """It moves its own direction, or raises and moves nothing; the other one stays open."""
    state = stream()
    setattr(state, direction, before)
    if isinstance(after, End):
        apply(state, name)
    else:
        with pytest.raises(after):
            apply(state, name)
        after = before
    expected = {"sending": End.OPEN, "receiving": End.OPEN, direction: after}
    assert {"sending": state.sending, "receiving": state.receiving} == expected


@pytest.mark.parametrize("sending", End)
@pytest.mark.parametrize("receiving", [End.OPEN, End.ENDED, End.DONE])
def test_a_slot_is_free_when_both_directions_are_done(sending: End, receiving: End) -> None:
    state = stream()
    state.sending, state.receiving = sending, receiving
    assert state.free == (sending is End.DONE and receiving is End.DONE)


def test_a_slot_is_not_free_while_something_is_queued() -> None:
    state = stream()
    state.sending = state.receiving = End.DONE
    state.queue.append(Sent(b"\x09\x00\x00\x00\x01\x01", 262, state, None))
    assert not state.free


def test_data_is_accepted_up_to_the_window() -> None:
    state = stream()
    state.accept(1000)
    with pytest.raises(RemoteProtocolError):
        state.accept(1)


def test_what_is_settled_was_received() -> None:
    state = stream()
    state.accept(100)
    state.settle(60)
    with pytest.raises(LocalProtocolError):
        state.settle(41)
    state.settle(40)
    assert state.settle_all() == 0


def test_settling_all_gives_what_is_left_once() -> None:
    state = stream()
    state.accept(100)
    state.settle(60)
    assert state.settle_all() == 40
    assert state.settle_all() == 0


def test_it_shows_its_state() -> None:
    assert repr(stream()) == "<Stream 1 OPEN OPEN>"
