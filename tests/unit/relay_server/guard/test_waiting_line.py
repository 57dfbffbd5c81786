from __future__ import annotations

import pytest
import trio
import trio.testing

from protocol.process.rate_limit import LINES, PERIOD
from relay_server.guard.guard import (
    BEGUN_BYTES,
    ESTABLISHED_BYTES,
    SILENT_GRACE,
    Caps,
    Ending,
    Guard,
    Traffic,
    Visitor,
)
from relay_server.guard.waiting_line import ARRIVALS, POLL_INTERVAL, WaitingLine
from tests.support.log_records import told

PATIENCE = 10.0
ABOUT = {"agent": "home", "service": "ssh", "source": "203.0.113.9"}


def line_of(*, per_source: int = 8, unauthenticated: int = 1) -> WaitingLine:
    caps = Caps(
        per_source=per_source,
        unauthenticated_per_source=8,
        unauthenticated=unauthenticated,
        waiting=64,
    )
    return WaitingLine(Guard(caps))


async def enter(
    line: WaitingLine, host: str, *, sent: int = 0, evicted: list[str] | None = None
) -> Visitor | None:
    names = [] if evicted is None else evicted
    return await line.enter(
        host,
        patience=PATIENCE,
        traffic=lambda: Traffic(sent, 0),
        evict=lambda: names.append(host),
    )


async def test_a_newcomer_waits_until_another_has_had_its_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    line, evicted = line_of(), list[str]()
    await enter(line, "a", evicted=evicted)
    assert await enter(line, "b") is not None
    assert evicted == ["a"]
    assert SILENT_GRACE <= trio.current_time() < SILENT_GRACE + 2 * POLL_INTERVAL
    assert line.guard.waiting == 0


async def test_a_newcomer_does_not_wait_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    line, evicted = line_of(), list[str]()
    for _ in range(20):
        bot = await enter(line, "bot")
        assert bot is not None
        line.guard.leave(bot, trio.current_time(), Ending.THEIRS)
    person = await enter(line, "a", evicted=evicted)
    assert person is not None
    late = list[Visitor | None]()

    async def come() -> None:
        late.append(await enter(line, "bot"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        nursery.start_soon(come)
        await trio.sleep(PATIENCE - POLL_INTERVAL)
        assert not evicted, "a place is no bot's while a person may be logging in"
        assert late == []
    assert PATIENCE <= trio.current_time() < PATIENCE + 2 * POLL_INTERVAL
    # But it is refused only where another of its source has a place.
    assert evicted == ["a"]
    assert [one is None for one in late] == [False, True]
    assert line.guard.waiting == 0


async def test_who_is_evicted_from_the_line_gets_no_place(
    mock_clock: trio.testing.MockClock,
) -> None:
    line = WaitingLine(
        Guard(Caps(per_source=8, unauthenticated_per_source=8, unauthenticated=1, waiting=1))
    )
    await enter(line, "a", sent=BEGUN_BYTES)
    evicted, got = list[str](), list[Visitor | None]()

    async def newcomer(host: str) -> None:
        got.append(await enter(line, host, evicted=evicted))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(newcomer, "b")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(newcomer, "c")
        await trio.testing.wait_all_tasks_blocked()
        assert evicted == ["b"]
        mock_clock.jump(POLL_INTERVAL)
        await trio.testing.wait_all_tasks_blocked()
        assert got == [None]
        nursery.cancel_scope.cancel()


async def test_who_goes_while_waiting_leaves_the_line(mock_clock: trio.testing.MockClock) -> None:
    line = line_of()
    await enter(line, "a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enter, line, "b")
        await trio.testing.wait_all_tasks_blocked()
        assert line.guard.waiting == 1
        nursery.cancel_scope.cancel()
    assert line.guard.waiting == 0
    assert line.guard.record("b").penalty_at(trio.current_time()) == 0.0


async def test_who_gets_a_place_and_goes_in_one_turn_keeps_none() -> None:
    line = line_of()
    with trio.CancelScope() as scope:
        scope.cancel()
        await enter(line, "a")
    assert line.guard.unauthenticated == 0


async def test_a_newcomer_gets_a_place_that_frees_itself(
    autojump_clock: trio.testing.MockClock,
) -> None:
    line, evicted = line_of(), list[str]()
    first = await enter(line, "a", evicted=evicted)
    assert first is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enter, line, "b")
        await trio.sleep(0.5)
        assert line.guard.waiting == 1
        line.guard.leave(first, trio.current_time(), Ending.OURS)
    assert trio.current_time() < 0.5 + 2 * POLL_INTERVAL
    assert not evicted


async def test_a_source_whose_visitors_are_all_established_may_have_no_more() -> None:
    line = line_of(per_source=1)
    assert await enter(line, "a", sent=ESTABLISHED_BYTES) is not None
    assert await enter(line, "a") is None


async def test_many_refusals_become_one_line(
    autojump_clock: trio.testing.MockClock, log: pytest.LogCaptureFixture
) -> None:
    line = line_of()
    async with trio.open_nursery() as nursery:
        for number in range(LINES + 400):
            nursery.start_soon(line.log_refused, ABOUT, "no place")
            if number < 3:
                nursery.start_soon(line.log_evicted, ABOUT, Traffic(21, 500))
    assert trio.current_time() == PERIOD
    assert told(log, "visitor-refused") == [ABOUT | {"reason": "no place"}] * LINES
    assert told(log, "visitors-refused") == [{"agent": "home", "service": "ssh", "more": 400}]
    assert told(log, "visitor-evicted") == [ABOUT | {"received": 21, "sent": 500}] * 3
    await line.log_refused(ABOUT, "no place")
    assert len(told(log, "visitor-refused")) == LINES + 1


async def test_of_many_who_come_some_are_told_of(
    mock_clock: trio.testing.MockClock, log: pytest.LogCaptureFixture
) -> None:
    line = line_of()
    assert all(line.log_arrival(ABOUT, stream) for stream in range(ARRIVALS))
    assert not any(line.log_arrival(ABOUT, stream) for stream in range(300))
    mock_clock.jump(PERIOD)
    assert line.log_arrival(ABOUT, 7)
    assert line.log_arrival(ABOUT, 9)
    lines = told(log, "visitor-in")
    assert len(lines) == ARRIVALS + 2
    assert lines[-2:] == [ABOUT | {"stream": 7, "suppressed": 300}, ABOUT | {"stream": 9}]
