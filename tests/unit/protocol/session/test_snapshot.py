"""That a saved session goes on as it was: tests/unit/protocol/session/test_session_model.py. Here:
what cannot be read is a lost session, and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, ResetCode, SessionLost
from protocol.session.session import Session
from protocol.session.snapshot import export, restore
from protocol.wire.body import Fields
from tests.support.pair import LARGE, SMALL, Pair, PairSide


def busy_pair() -> Pair:
    """Every kind of frame is queued or kept, and every list of the saved map has something."""
    pair = Pair(LARGE, SMALL)
    first, second, third = pair.opened(), pair.opened(), pair.opened()
    for side in pair.sides:
        pair.write(side, first, 500)
    pair.settle()
    pair.relay.capacity = pair.agent.capacity = 0
    pair.finish(pair.relay, second)
    pair.reset(pair.relay, third)
    pair.write(pair.relay, first, 10**6)
    pair.cut()
    pair.notice(pair.relay)
    pair.notice(pair.agent)
    return pair


def saved_of(side: PairSide) -> dict[str, Any]:
    saved = msgpack.unpackb(msgpack.packb(export(side.session)))
    assert isinstance(saved, dict)
    return saved


def read(saved: dict[str, Any], side: PairSide) -> Session:
    return restore(Fields(saved, strict=True), side=side.side, options=side.options())


def test_only_a_session_between_links_is_saved() -> None:
    pair = Pair()
    with pytest.raises(LocalProtocolError):
        export(pair.relay.session)


def test_a_busy_session_goes_on_in_another_process() -> None:
    pair = busy_pair()
    pair.hand_over(pair.relay)
    pair.hand_over(pair.agent)
    pair.bring_to_an_end()


def test_what_a_stream_that_is_gone_left_unacked_is_sent_again_and_freed() -> None:
    pair = Pair()
    stream = pair.opened()
    pair.relay.lost = True
    pair.write(pair.relay, stream, 100)
    pair.finish(pair.relay, stream)
    pair.reset(pair.agent, stream)
    pair.deliver(pair.relay)
    assert pair.relay.session.open_streams == 0
    assert pair.relay.session.statistics().replay_held
    pair.hand_over(pair.relay)
    pair.bring_to_an_end()


def test_the_limits_that_the_peer_was_told_outlive_another_configuration() -> None:
    pair = Pair(SMALL, LARGE)
    pair.notice(pair.relay)
    saved = saved_of(pair.relay)
    pair.relay.profile = LARGE
    assert export(read(dict(saved), pair.relay)) == saved


def test_windows_that_had_an_update_due_have_it_still() -> None:
    pair = Pair(SMALL, SMALL)
    streams = [pair.opened(), pair.opened()]
    for stream in streams:
        pair.write(pair.agent, stream, 10**4)
    pair.settle()
    pair.notice(pair.relay)
    for stream in streams:
        pair.read(pair.relay, stream, 500)
    pair.hand_over(pair.relay)
    assert pair.relay.session.streams == tuple(streams)
    pair.resume()
    pair.settle()
    for stream in streams:
        assert pair.relay.halves[stream].delivered > SMALL.stream_window


Spoil = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda saved: saved.pop("kept"),
        lambda saved: saved.update(colour="blue"),
        lambda saved: saved["streams"][0].update(colour="blue"),
        lambda saved: saved.update(own=[1, 2]),
        lambda saved: saved.update(peer=[0, 1, 1]),
        lambda saved: saved.update(received=-1),
        lambda saved: saved.update(window=[1, 2, -3]),
        lambda saved: saved.update(kept=[b"\x06\0\0\0"]),
        lambda saved: saved.update(kept=[b"\x43" + bytes(12)]),
        lambda saved: saved.update(control="none"),
        lambda saved: saved.update(control=["none"]),
        lambda saved: saved.update(streams=[5]),
        lambda saved: saved.update(publications=[7]),
        lambda saved: saved["streams"][0].update(settled=10**9),
        lambda saved: saved["streams"][0].update(sending=4),
        lambda saved: saved["streams"][0].update(id=10**6),
        lambda saved: saved["streams"][-1].update(abandoned=0),
    ],
)
def test_what_cannot_be_read_is_a_lost_session_that_holds_nothing(spoil: Spoil) -> None:
    pair = busy_pair()
    saved = saved_of(pair.relay)
    spoil(saved)
    held = pair.relay.cap.held
    with pytest.raises(SessionLost, match="saved state cannot be read"):
        read(saved, pair.relay)
    assert pair.relay.cap.held == held


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.binary(max_size=9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(data=st.data())
def test_whatever_is_in_a_field_restores_or_is_lost(data: st.DataObject) -> None:
    pair = busy_pair()
    saved = saved_of(pair.relay)
    within = data.draw(st.sampled_from([saved, *saved["streams"]]))
    within[data.draw(st.sampled_from(sorted(within)))] = data.draw(values)
    held = pair.relay.cap.held
    try:
        session = read(saved, pair.relay)
    except SessionLost:
        pass
    else:
        session.reset(1, ResetCode.ABORTED)
        session.discard()
    assert pair.relay.cap.held == held
