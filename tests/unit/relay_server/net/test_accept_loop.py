from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from relay_server.net import accept_loop
from relay_server.net.accept_loop import accept_forever, listen, plain_address, stop_accepting
from tests.support.log_records import told
from tests.support.ports import LOOPBACK
from tests.support.sockets import caller_of, refuses
from tests.support.trio_waiting import quiet, until


class FakeListener:
    """A listening socket whose `accept` goes through `outcomes`, then has nobody."""

    def __init__(self, *outcomes: int | str) -> None:
        self.outcomes = list(outcomes)
        self.asked = 0
        self.open = True
        self._readable, self._writable = socket.socketpair()

    def fileno(self) -> int:
        return self._readable.fileno() if self.open else -1

    def accept(self) -> tuple[object, tuple[str, int]]:
        self.asked += 1
        if not self.outcomes:
            raise BlockingIOError
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, int):
            raise OSError(outcome, errno.errorcode[outcome])
        return object(), (outcome, 1)

    def close(self) -> None:
        self.open = False
        self._readable.close()
        self._writable.close()


async def accepted_by(fake: FakeListener, during: Callable[[], object] = list) -> list[str]:
    """Whom `accept_forever` takes until it has nothing more to do."""
    hosts: list[str] = []

    def on_caller(_: object, source: tuple[str, int]) -> None:
        hosts.append(source[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, cast(socket.socket, fake), on_caller)
        await quiet()
        during()
        await quiet()
        nursery.cancel_scope.cancel()
    fake.close()
    return hosts


@pytest.mark.parametrize("code", sorted(accept_loop._OF_THE_CALLER))
async def test_an_error_of_one_caller_does_not_delay_the_next(
    code: int, mock_clock: trio.testing.MockClock, log: pytest.LogCaptureFixture
) -> None:
    assert await accepted_by(FakeListener(code, "a", code, code, "b")) == ["a", "b"]
    assert not log.records


@pytest.mark.parametrize(
    "code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM, errno.EINVAL]
)
async def test_any_other_error_is_waited_out(
    code: int, mock_clock: trio.testing.MockClock, log: pytest.LogCaptureFixture
) -> None:
    fake = FakeListener(code, "a")
    asked = []

    def later() -> None:
        asked.append(fake.asked)
        mock_clock.jump(0.1)

    assert await accepted_by(fake, later) == ["a"]
    assert asked == [1], "it asked again without waiting"
    assert told(log, "accept-failed") == [{"reason": errno.errorcode[code]}]


async def test_an_error_that_never_ends_costs_little_and_is_told_each_minute(
    autojump_clock: trio.testing.MockClock, log: pytest.LogCaptureFixture
) -> None:
    fake = FakeListener(*[errno.EINVAL] * 100_000)
    failures: list[int] = []
    with trio.move_on_after(90):
        sock = cast(socket.socket, fake)
        await accept_forever(sock, lambda sock, source: None, lambda: failures.append(1))
    assert fake.asked == pytest.approx(900, abs=2)
    assert len(failures) == fake.asked
    assert len(told(log, "accept-failed")) == 2
    fake.close()


async def test_many_callers_let_others_run() -> None:
    turns: list[int] = []
    hosts: list[str] = []

    async def bystander() -> None:
        while True:
            turns.append(len(hosts))
            await trio.lowlevel.checkpoint()

    fake = FakeListener(*["a"] * 100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bystander)
        nursery.start_soon(
            accept_forever, cast(socket.socket, fake), lambda sock, source: hosts.append(source[0])
        )
        await until(lambda: len(hosts) == 100)
        nursery.cancel_scope.cancel()
    # Two turns of 16 may fall between two of the bystander's.
    assert all(later - earlier <= 32 for earlier, later in pairwise(turns))
    fake.close()


async def test_real_callers_come_with_their_addresses() -> None:
    callers: list[tuple[socket.socket, tuple[str, int]]] = []
    with listen(LOOPBACK, 0, dual_stack=False) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_forever, sock, lambda *caller: callers.append(caller))
            with caller_of(sock.getsockname()[1]) as caller:
                await until(lambda: callers)
                assert callers[0][1] == caller.getsockname()
                callers[0][0].close()
            nursery.cancel_scope.cancel()


async def test_closing_ends_it_where_it_waits() -> None:
    sock = listen(LOOPBACK, 0, dual_stack=False)
    port = sock.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, sock, lambda sock, source: None)
        await quiet()
        stop_accepting(sock)
        assert refuses(port)
        stop_accepting(sock)


async def test_closing_ends_it_although_a_caller_came_in_that_very_turn() -> None:
    sock = listen(LOOPBACK, 0, dual_stack=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, sock, lambda sock, source: sock.close())
        await quiet()
        # Its twin is woken in the same turn.
        with sock.dup() as twin, caller_of(sock.getsockname()[1]):
            await trio.lowlevel.wait_readable(twin.fileno())
            stop_accepting(sock)


async def test_closing_ends_it_where_it_pauses(mock_clock: trio.testing.MockClock) -> None:
    fake = FakeListener(errno.EMFILE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, cast(socket.socket, fake), lambda sock, source: None)
        await quiet()
        fake.close()
        mock_clock.jump(0.1)


def test_dual_stack_takes_both_families() -> None:
    with listen("::", 0, dual_stack=True) as sock:
        port = sock.getsockname()[1]
        for host in (LOOPBACK, "::1"):
            with socket.create_connection((host, port)):
                accept_socket, address = sock.accept()
                accept_socket.close()
                assert plain_address(address)[0] == host


def test_single_stack_takes_one_family() -> None:
    with listen("::1", 0, dual_stack=False) as sock:
        assert refuses(sock.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "port"), [("192.0.2.1", 0), ("no address", 0), (LOOPBACK, 65536), (LOOPBACK, -1)]
)
def test_what_cannot_be_listened_on_is_an_oserror(host: str, port: int) -> None:
    with pytest.raises(OSError):
        listen(host, port, dual_stack=False)


def test_a_taken_port_is_an_oserror_and_sockets_in_time_wait_are_none() -> None:
    with listen(LOOPBACK, 0, dual_stack=False) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            listen(LOOPBACK, port, dual_stack=False)
        with socket.create_connection((LOOPBACK, port)) as caller:
            served, _ = sock.accept()
            served.close()  # first, so that TIME-WAIT is on our side
            assert caller.recv(1) == b""
    listen(LOOPBACK, port, dual_stack=False).close()


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        (("203.0.113.9", 1), ("203.0.113.9", 1)),
        (("::ffff:203.0.113.9", 1, 0, 0), ("203.0.113.9", 1)),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::1", 1)),
        (("::ffff:1:2", 1, 0, 0), ("::ffff:1:2", 1)),
    ],
)
def test_plain_addresses(address: tuple[str, int], plain: tuple[str, int]) -> None:
    assert plain_address(address) == plain


STARVED = """
import logging, resource, socket, sys, trio
from relay_server.net.accept_loop import accept_forever, listen

async def main():
    sock = listen("127.0.0.1", 0, dual_stack=False)
    held, served = [], trio.Event()
    caller = socket.create_connection(sock.getsockname())
    resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
    try:
        while True:
            held.append(open("/dev/null"))
    except OSError:
        pass
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, sock, lambda sock, source: served.set())
        await trio.sleep(0.05)
        assert not served.is_set()
        held.pop().close()
        await served.wait()
        nursery.cancel_scope.cancel()
    print("served")

trio.run(main)
"""


def test_running_out_of_descriptors_is_survived() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARVED],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        cwd=Path(accept_loop.__file__).parents[2],
    )
    assert done.stdout.splitlines() == ["accept-failed", "served"], done.stderr
