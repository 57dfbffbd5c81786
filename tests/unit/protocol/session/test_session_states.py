"""Every frame and every call in every state of a stream."""

from __future__ import annotations

import pytest

from protocol.errors import LocalProtocolError, RemoteProtocolError, ResetCode
from protocol.session.events import (
    DataReceived,
    StreamFinished,
    StreamReset,
)
from protocol.session.stream import End
from tests.support.lone_session import (
    DATA,
    FIN,
    RESET,
    WINDOW,
    Lone,
    frame,
    u8,
    u32,
)

# Every (state, frame) pair. A cell is `event sending/receiving`, the state after it; `-` is no
# event, `ignored` counts the frame and does nothing, `error` is the peer's.
RECEIVED = """
sending receiving | DATA              | WINDOW         | FIN               | RESET
OPEN    OPEN      | data OPEN/OPEN    | - OPEN/OPEN    | fin OPEN/ENDED    | reset gone
OPEN    ENDED     | error             | - OPEN/ENDED   | error             | finished DONE/ENDED
OPEN    DONE      | error             | - OPEN/DONE    | error             | finished gone
ENDING  OPEN      | data ENDING/OPEN  | - ENDING/OPEN  | fin ENDING/ENDED  | reset gone
ENDING  ENDED     | error             | - ENDING/ENDED | error             | finished DONE/ENDED
ENDING  DONE      | error             | - ENDING/DONE  | error             | finished gone
ENDED   OPEN      | data ENDED/OPEN   | - ENDED/OPEN   | fin ENDED/ENDED   | reset gone
ENDED   ENDED     | error             | - ENDED/ENDED  | error             | finished DONE/ENDED
ENDED   DONE      | error             | - ENDED/DONE   | error             | finished gone
DONE    OPEN      | data DONE/OPEN    | - DONE/OPEN    | fin DONE/ENDED    | reset gone
DONE    ENDED     | error             | - DONE/ENDED   | error             | finished DONE/ENDED
gone    gone      | ignored gone      | ignored gone   | ignored gone      | ignored gone
never   never     | error             | error          | error             | error
"""

# The same for what the owner calls; `bug` is LocalProtocolError, `RESET` that frame goes out.
CALLED = """
sending receiving | send         | finish        | reset             | consumed | fin_delivered
OPEN    OPEN      | OPEN/OPEN    | ENDING/OPEN   | RESET gone        | bug      | bug
OPEN    ENDED     | OPEN/ENDED   | ENDING/ENDED  | RESET gone        | bug      | OPEN/DONE
OPEN    DONE      | OPEN/DONE    | ENDING/DONE   | RESET gone        | OPEN/DONE | bug
ENDING  OPEN      | bug          | bug           | RESET ENDING/DONE | bug      | bug
ENDING  ENDED     | bug          | bug           | ENDING/DONE       | bug      | ENDING/DONE
ENDING  DONE      | bug          | bug           | ENDING/DONE       | ENDING/DONE | bug
ENDED   OPEN      | bug          | bug           | RESET ENDED/DONE  | bug      | bug
ENDED   ENDED     | bug          | bug           | ENDED/DONE        | bug      | ENDED/DONE
ENDED   DONE      | bug          | bug           | ENDED/DONE        | ENDED/DONE | bug
DONE    OPEN      | DONE/OPEN    | DONE/OPEN     | RESET gone        | bug      | bug
DONE    ENDED     | DONE/ENDED   | DONE/ENDED    | gone              | bug      | gone
gone    gone      | gone         | gone          | gone              | gone     | gone
never   never     | never        | never         | never             | never    | never
"""


def cells(table: str) -> list[tuple[str, str, str, str]]:
    """(sending, receiving, input, expected) of each cell."""
    head, *rows = [line.split("|") for line in table.strip().splitlines()]
    inputs = [name.strip() for name in head[1:]]
    found = []
    for row in rows:
        sending, receiving = row[0].split()
        found += [
            (sending, receiving, name, cell.strip())
            for name, cell in zip(inputs, row[1:], strict=True)
        ]
    return found


def agent_in(sending: str, receiving: str) -> Lone:
    """An agent whose stream 1 is in that state."""
    if sending == "never":
        return Lone.agent()
    lone = Lone.agent(1)
    if sending == "gone":
        lone.get(frame(RESET, 1, u8(1)))
    if sending in ("ENDING", "ENDED", "DONE"):
        assert not lone.send(1, b"x")
        lone.session.finish(1)
    if sending in ("ENDED", "DONE"):
        lone.sent()
    if sending == "DONE":
        lone.ack_all()
    if receiving in ("ENDED", "DONE"):
        lone.get(frame(FIN, 1))
    if receiving == "DONE":
        lone.session.fin_delivered(1)
    if sending != "gone":
        assert lone.state(1) == (End[sending], End[receiving])
    return lone


@pytest.mark.parametrize("sending", ["ENDING", "ENDED"])
def test_what_was_under_way_when_we_reset_is_ignored(sending: str) -> None:
    lone = agent_in(sending, "OPEN")
    lone.session.reset(1, ResetCode.ABORTED)
    for late in (frame(DATA, 1, b"late"), frame(FIN, 1), frame(FIN, 1)):
        assert lone.get(late) is None
    assert lone.session.statistics().frames_ignored == 3
    assert shown(lone) == f"{sending}/DONE"


def shown(lone: Lone) -> str:
    state = lone.state(1)
    return "gone" if state is None else f"{state[0].name}/{state[1].name}"


BODIES = {"DATA": b"hello", "WINDOW": u32(10), "FIN": b"", "RESET": u8(2)}
KINDS = {"DATA": DATA, "WINDOW": WINDOW, "FIN": FIN, "RESET": RESET}


@pytest.mark.parametrize(("sending", "receiving", "name", "expected"), cells(RECEIVED))
def test_every_frame_in_every_state(sending: str, receiving: str, name: str, expected: str) -> None:
    lone = agent_in(sending, receiving)
    before = lone.session.statistics()
    received = frame(KINDS[name], 1, BODIES[name])
    if expected == "error":
        with pytest.raises(RemoteProtocolError):
            lone.get(received)
        return
    event = lone.get(received)
    what, after = expected.split()
    match what:
        case "data":
            assert isinstance(event, DataReceived)
            assert (event.stream, bytes(event.data)) == (1, b"hello")
        case "fin":
            assert event == StreamFinished(1)
        case "reset":
            assert event == StreamReset(1, 2, finished=False)
        case "finished":
            assert event == StreamReset(1, 2, finished=True)
        case _:
            assert event is None
    assert shown(lone) == after
    statistics = lone.session.statistics()
    assert statistics.frames_ignored - before.frames_ignored == (what == "ignored")
    assert statistics.frames_received == before.frames_received + 1
    if what in ("reset", "finished"):
        sent = lone.sent()
        assert not [one for one in sent if one[0] == RESET], "a RESET is never answered by one"


@pytest.mark.parametrize(("sending", "receiving", "name", "expected"), cells(CALLED))
def test_every_call_in_every_state(sending: str, receiving: str, name: str, expected: str) -> None:
    lone = agent_in(sending, receiving)
    session = lone.session
    calls = {
        "send": lambda: lone.send(1, b"more"),
        "finish": lambda: session.finish(1),
        "reset": lambda: session.reset(1, ResetCode.ABORTED),
        "consumed": lambda: session.consumed(1, 1, kept_up=True),
        "fin_delivered": lambda: session.fin_delivered(1),
    }
    assert bool(session.allowance(1)) == (sending == "OPEN")
    if expected == "bug":
        with pytest.raises(LocalProtocolError):
            calls[name]()
        return
    assert not calls[name]()
    *resets, after = expected.split()
    assert shown(lone) == ("gone" if after == "never" else after)
    sent = lone.sent()
    assert [one for one in sent if one[0] == RESET] == [frame(RESET, 1, u8(1))] * len(resets)
    if sending == "ENDING":
        # Finished is finished: data, FIN, and only then a RESET.
        assert [one[0] for one in sent] == [DATA, FIN] + [RESET] * len(resets)
    if after == "gone":
        lone.ack_all()
        assert session.statistics().replay_held == session.statistics().control_held == 0
