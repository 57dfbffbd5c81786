from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from protocol.process.systemd import notify, take_descriptors, watchdog_seconds
from tests.support.service_manager import Manager

# Where no test runner has a descriptor of its own.
FIRST = 300


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    name = str(tmp_path / "notify")
    with Manager(name if request.param == "path" else "@" + name) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        yield manager


def test_lines_arrive_as_one_message(manager: Manager) -> None:
    notify("READY=1", "STATUS=2 agents attached")
    assert manager.take() == [(["READY=1", "STATUS=2 agents attached"], [])]


def test_descriptors_go_along(manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        notify("FDSTORE=1", "FDNAME=it", descriptors=[sock.fileno()])
        ((lines, descriptors),) = manager.take()
        assert lines == ["FDSTORE=1", "FDNAME=it"]
        with socket.socket(fileno=descriptors[0]) as copy:
            assert copy.getsockname() == sock.getsockname()


def test_a_manager_too_busy_or_gone_stops_nobody(manager: Manager) -> None:
    for _ in range(10_000):
        notify("WATCHDOG=1")
    assert len(manager.take()) < 10_000, "some found no room, and nothing waited"
    manager.close()
    notify("WATCHDOG=1")


def test_what_must_not_be_missed_waits_for_room(manager: Manager) -> None:
    for _ in range(10_000):
        notify("WATCHDOG=1")
    with ThreadPoolExecutor() as others:
        told = others.submit(notify, "FDSTOREREMOVE=1", wait=30.0)
        came: list[list[str]] = []
        while not told.done():
            came += [lines for lines, _ in manager.take()]
    assert ["FDSTOREREMOVE=1"] in [*came, *(lines for lines, _ in manager.take())]


@pytest.mark.parametrize("address", [None, "", "nowhere", "vsock:2:1234"])
def test_without_a_manager_nothing_is_said(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1"}, 1e-6),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
    ],
)
def test_the_watchdog_is_for_this_process(
    environment: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_seconds(environment) == seconds


@pytest.fixture
def given() -> Iterator[list[socket.socket]]:
    """Two listening sockets, also at the descriptors from FIRST on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        for number, sock in enumerate(sockets):
            os.dup2(sock.fileno(), FIRST + number, inheritable=True)
        yield sockets
        for number in range(2):
            try:
                os.close(FIRST + number)
            except OSError:  # taken and closed
                continue


def test_sockets_come_with_their_names_and_only_once(given: list[socket.socket]) -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}
    taken = take_descriptors(environment, first=FIRST)
    assert [name for name, _ in taken] == ["a", "unknown"]
    for (_, descriptor), original in zip(taken, given, strict=True):
        assert not os.get_inheritable(descriptor)
        with socket.socket(fileno=descriptor) as sock:
            assert sock.getsockname() == original.getsockname()
    assert environment == {}
    assert take_descriptors(environment, first=FIRST) == []


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"},
    ],
)
def test_what_is_for_another_process_is_left_alone(
    environment: dict[str, str], given: list[socket.socket]
) -> None:
    assert take_descriptors(environment, first=FIRST) == []
    assert environment == {}
