from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from relay_server.process.sd_status import STATUS_SECONDS, report, status
from tests.support.service_manager import Manager

Clock = trio.testing.MockClock


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with Manager(str(tmp_path / "notify")) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        yield manager


def agents(*present: tuple[bool, int, int | None]) -> Any:
    """Each: attached, open ports, streams (None without a session)."""
    return SimpleNamespace(
        present=[
            SimpleNamespace(
                ownership=SimpleNamespace(attached=attached),
                ports=SimpleNamespace(
                    listeners={port: SimpleNamespace(open=True) for port in range(ports)}
                ),
                endpoint=None
                if streams is None
                else SimpleNamespace(session=SimpleNamespace(open_streams=streams)),
            )
            for attached, ports, streams in present
        ]
    )


def test_the_status_counts_what_is_here() -> None:
    assert status(agents()) == "0 agents attached, 0 away, 0 ports open, 0 visitors"
    present = agents((True, 2, 3), (False, 1, 1), (False, 0, None))
    assert status(present) == "1 agents attached, 2 away, 3 ports open, 4 visitors"


@pytest.mark.parametrize(
    ("patience", "pause"), [("", STATUS_SECONDS), ("60000000", STATUS_SECONDS), ("4000000", 2.0)]
)
async def test_the_manager_hears_twice_within_its_patience(
    patience: str,
    pause: float,
    manager: Manager,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: Clock,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", patience)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    told = f"STATUS={status(agents())}"
    with trio.move_on_after(2.5 * pause):
        await report(agents())
    assert [lines for lines, _ in manager.take()] == [
        ["READY=1", told],
        ["WATCHDOG=1", told],
        ["WATCHDOG=1", told],
    ]
