"""Who shares the router's uplink: an echo beside copies, and copies among themselves.

No time is asserted, but what is in front of an echo: were it to wait for what copies may have in
our own processes, that would be a window of each of them.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.process.config import parse_size
from tests.support.lab.network import QUEUE, ROUTER, SSH_PORT, VPS_TO_LAPTOP, Lab
from tests.support.lab.typing_load import End
from tests.support.programs import services
from tests.support.waiting import LIMIT

FAR_PORT = 4000
RATE = 4e6
# The default window of a stream at first, of which copies keep a good part filled when nothing
# holds them back.
WINDOW = parse_size("256KiB")


@pytest.fixture
def near(lab: Lab) -> Iterator[End]:
    """The visitor of a far end that takes the place of the router's SSH server."""
    lab.wan.shape("up", rate=RATE, queue=QUEUE)
    with contextlib.ExitStack() as undo:
        far = End(lab.router, "far", str(FAR_PORT))
        undo.callback(far.stop)
        near = End(lab.vps, "near", lab.vps.name, lab.laptop.name, ROUTER, str(FAR_PORT))
        undo.callback(near.stop)
        lab.agent.stop()
        lab.agent.configure(services(("load", FAR_PORT, SSH_PORT)))
        since = time.monotonic()
        lab.start_agent()
        while lab.journal.first("service-up", since=since, who="agent") is None:
            assert time.monotonic() < since + LIMIT, lab.describe()
            time.sleep(0.05)
        yield near


def observe(near: End, *, copies: int, seconds: float) -> dict[str, Any]:
    return near.command(
        via="laptop",
        host=VPS_TO_LAPTOP,
        port=SSH_PORT,
        copies=copies,
        way="up",
        warm=2.0,
        seconds=seconds,
        pause=0.05,
        patience=LIMIT,
        seed=0,
    )


@pytest.mark.parametrize("copies", [1, 8])
def test_an_echo_does_not_wait_for_what_copies_have_here(near: End, copies: int) -> None:
    seen = observe(near, copies=copies, seconds=3.0)
    beyond = [
        echo - ping
        for echo, ping in zip(seen["echoes"], seen["pings"], strict=True)
        if ping is not None
    ]
    window = WINDOW * 8 / RATE
    print(f"{statistics.median(beyond):.3f} s beyond a ping; a window takes {window:.3f} s")
    assert statistics.median(beyond) < window / 4


def test_copies_share_evenly(near: End) -> None:
    seen = observe(near, copies=8, seconds=5.0)
    print(seen["copies"])
    assert max(seen["copies"]) < 2 * min(seen["copies"])
