"""A session at rest, as it is saved for the process that goes on with it.

    export(session) ──map──▶ msgpack, another process ──map──▶ restore(map) ──▶ the same session

Only between links: what is sealed dies with its link, so a saved session holds no key, and whoever
comes next shakes hands anew. This one module knows the insides of a session's parts, so that none
of them needs to know how it is saved.

What is left out is made anew: readers ask for their allowance again, streams that have something
queued wake in the order of their ids, and a window grows only after one more update, since times
are of another clock.

The map has exactly these keys. A change of what they mean needs another format
(protocol.process.handover), so that a process that would misread it can tell.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from protocol.errors import LocalProtocolError, RemoteProtocolError, SessionLost
from protocol.session.publications import MAX_LIVE
from protocol.session.replay import FRAME_OVERHEAD
from protocol.session.session import Session, SessionOptions
from protocol.session.side import Side
from protocol.session.stream import End, Sent, Stream
from protocol.session.window import ReceiveWindow, SendWindow
from protocol.wire import frame as wire
from protocol.wire.body import Fields
from protocol.wire.frame import HEADER_SIZE, LAST_SEQUENCED, MAX_STREAM, MAX_WINDOW, FrameType
from protocol.wire.hello import MAX_STREAMS, U64_MAX, Limits
from protocol.wire.record import MAX_FRAME

# Frames in one list: memory bounds them by far, this one only what is read.
_MOST_FRAMES: Final = 2**24
# A window, and the sum of all that was refunded on top of a full credit.
_MOST_CREDIT: Final = 2 * MAX_WINDOW


def export(session: Session) -> dict[str, object]:
    """What `restore` takes. The frames in it are the session's own: pack it at once."""
    if session.attached:
        raise LocalProtocolError("a session is saved between links")
    outbox, publications = session._outbox, session._publications
    return {
        "own": _limits(session._options.limits),
        "peer": _limits(session._peer),
        "received": session.received,
        "base": outbox.replay.base,
        "kept": [sent.frame for sent in outbox.replay._kept],
        "control": [sent.frame for sent in outbox.control_queue],
        "credit": session._send_admission.credit.credit,
        "window": _window(session._receive_credit._session),
        "publications": sorted(publications._live),
        "last_publication": publications._last,
        "streams": [_stream(state) for state in session._streams.values()],
        "last_stream": session._last_stream,
    }


def restore(saved: Fields, *, side: Side, options: SessionOptions) -> Session:
    """The session that was exported, but for the memory that `options` allow it from now on.

    Raises SessionLost for what cannot be read.
    """
    try:
        own, peer = _take_limits(saved, "own"), _take_limits(saved, "peer")
        session = Session(side=side, options=replace(options, limits=own), peer=peer)
    except RemoteProtocolError as exc:
        raise _unreadable(exc) from None
    try:
        _fill(session, saved)
    except RemoteProtocolError as exc:
        session.discard()
        raise _unreadable(exc) from None
    return session


def _unreadable(exc: RemoteProtocolError) -> SessionLost:
    return SessionLost(f"its saved state cannot be read: {exc}")


# Out


def _limits(limits: Limits) -> list[int]:
    return [limits.streams, limits.stream_window, limits.session_window]


def _window(window: ReceiveWindow) -> list[int]:
    return [window.size, window._available, window._consumed]


def _stream(state: Stream) -> dict[str, object]:
    return {
        "id": state.id,
        "credit": state.credit.credit,
        "window": _window(state.window),
        "sending": int(state.sending),
        "receiving": int(state.receiving),
        "abandoned": state.abandoned,
        "received": state._received,
        "settled": state._settled,
        "queue": [sent.frame for sent in state.queue],
    }


# In


def _fill(session: Session, saved: Fields) -> None:
    session._acks.received = saved.integer("received", 0, U64_MAX)
    session._last_stream = saved.integer("last_stream", -1, MAX_STREAM)
    session._send_admission.credit = SendWindow(saved.integer("credit", 0, _MOST_CREDIT))
    session._publications._last = last = saved.integer("last_publication", 0, MAX_STREAM)
    session._publications._live.update(saved.integers("publications", 1, last, most=MAX_LIVE))
    session._receive_credit._session = window = _take_window(saved, None)
    for one in saved.maps("streams", most=MAX_STREAMS):
        _fill_stream(session, one)
    gone: dict[int, Stream] = {}  # streams of which only frames are left that the peer may lack
    outbox = session._outbox
    outbox.replay.base = saved.integer("base", 0, U64_MAX)
    for frame in _take_frames(saved, "kept"):
        kind, number = wire.split(memoryview(frame))
        state = None
        if kind in (FrameType.DATA, FrameType.FIN):
            state = session._streams.get(number) or gone.setdefault(number, _gone(number))
        outbox.replay._kept.append(_sent(session, frame, state))
    for frame in _take_frames(saved, "control"):
        outbox.control_queue.append(_sent(session, frame, None))
    saved.finish()
    if window.pinched or window._consumed * 2 >= window.size:
        session._receive_credit.due[None] = False


def _fill_stream(session: Session, saved: Fields) -> None:
    options, outbox = session._options, session._outbox
    number = saved.integer("id", 0, session._last_stream)
    credit = SendWindow(saved.integer("credit", 0, _MOST_CREDIT))
    window = _take_window(saved, options.window_limit)
    state = Stream(number, credit, window)
    state.sending = End(saved.integer("sending", End.OPEN, End.DONE))
    state.receiving = End(saved.integer("receiving", End.OPEN, End.DONE))
    state.abandoned = saved.boolean("abandoned")
    state._received = saved.integer("received", 0, U64_MAX)
    state._settled = saved.integer("settled", 0, state._received)
    session._streams[number] = state
    session._receive_credit.opened(state)
    for frame in _take_frames(saved, "queue"):
        state.queue.append(_sent(session, frame, state))
    saved.finish()
    if state.queue:
        outbox.scheduler.wake(state)
    if state.receiving is End.OPEN and window._consumed * 2 >= window.size:
        session._receive_credit.due[state] = False


def _gone(number: int) -> Stream:
    state = Stream(number, SendWindow(0), ReceiveWindow(0))
    state.sending = state.receiving = End.DONE
    return state


def _sent(session: Session, frame: bytes, state: Stream | None) -> Sent:
    kind = frame[0]
    if kind > LAST_SEQUENCED:
        raise RemoteProtocolError(f"a frame of type {kind:#04x} is not kept")
    if kind != FrameType.DATA or state is None:
        return session._outbox.control(frame, state)
    cost = FRAME_OVERHEAD + len(frame)
    session._outbox.budget.take(cost)
    state.held += cost
    return Sent(frame, cost, state, None)


def _take_frames(saved: Fields, key: str) -> tuple[bytes, ...]:
    return saved.octet_strings(key, HEADER_SIZE, MAX_FRAME, most=_MOST_FRAMES)


def _take_window(saved: Fields, limit: int | None) -> ReceiveWindow:
    size, available, consumed = _take_three(saved, "window", 0)
    window = ReceiveWindow(size, limit=limit, now=-math.inf)
    window._available, window._consumed = available, consumed
    return window


def _take_limits(saved: Fields, key: str) -> Limits:
    streams, stream_window, session_window = _take_three(saved, key, 1)
    return Limits(streams=streams, stream_window=stream_window, session_window=session_window)


def _take_three(saved: Fields, key: str, low: int) -> tuple[int, int, int]:
    values = saved.integers(key, low, MAX_WINDOW, most=3)
    if len(values) != 3:
        raise RemoteProtocolError(f"field {key}: expected three integers")
    return values[0], values[1], values[2]
