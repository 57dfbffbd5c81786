from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing

from protocol.errors import RefusalCode
from relay_server.agents.listener import RETRY, Listener, PortUnavailable
from relay_server.net import fd_store
from tests.support.log_records import told
from tests.support.ports import LOOPBACK, free_port
from tests.support.sockets import caller_of, refuses
from tests.support.trio_waiting import quiet, until


def serving(
    listener: Listener,
    on_visitor: Callable[[socket.socket, tuple[str, int]], None] | None = None,
    opened: Callable[[], None] = lambda: None,
) -> Callable[[], object]:
    return partial(
        listener.serve,
        LOOPBACK,
        agent="home",
        on_visitor=on_visitor or (lambda sock, source: sock.close()),
        opened=opened,
    )


async def test_all_addresses_of_both_families_are_opened() -> None:
    listener = Listener(free_port(), "ssh")
    listener.try_open(None)
    assert [sock.family for sock in listener.sockets] == [socket.AF_INET, socket.AF_INET6]
    for host in (LOOPBACK, "::1"):
        socket.create_connection((host, listener.port)).close()
    listener.close()
    assert refuses(listener.port)


async def test_only_the_address_to_bind_is_opened() -> None:
    listener = Listener(free_port(), "ssh")
    listener.try_open(LOOPBACK)
    assert [sock.getsockname()[0] for sock in listener.sockets] == [LOOPBACK]
    listener.close()


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
async def test_without_ipv6_it_does_with_ipv4(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fd_store.listen

    def listen(host: str, port: int, *, dual_stack: bool) -> socket.socket:
        if ":" in host:
            raise OSError(code, "no IPv6")
        return real(host, port, dual_stack=dual_stack)

    monkeypatch.setattr(fd_store, "listen", listen)
    listener = Listener(free_port(), "ssh")
    listener.try_open(None)
    assert len(listener.sockets) == 1
    listener.close()


async def test_without_ipv6_no_such_address_can_be_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def listen(host: str, port: int, *, dual_stack: bool) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "no IPv6")

    monkeypatch.setattr(fd_store, "listen", listen)
    with pytest.raises(PortUnavailable, match="no IPv6"):
        Listener(free_port(), "ssh").try_open("::1")


@pytest.mark.parametrize("held", ["0.0.0.0", "::"])
async def test_a_port_held_by_another_program_is_busy_and_nothing_stays_open(held: str) -> None:
    port = free_port()
    family = socket.AF_INET6 if ":" in held else socket.AF_INET
    with socket.create_server((held, port), family=family):
        listener = Listener(port, "ssh")
        with pytest.raises(PortUnavailable) as caught:
            listener.try_open(None)
        assert caught.value.code is RefusalCode.PORT_BUSY
        assert caught.value.reason == f"another program holds port {port}"
        assert not listener.open
    listener.try_open(None)
    listener.close()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EACCES, "port 22 cannot be opened: the relay may not open ports below 1024"),
        (errno.EPERM, "port 22 cannot be opened: the relay may not open ports below 1024"),
        (errno.EMFILE, "port 22 cannot be opened: too many"),
    ],
)
def test_other_failures_say_why(code: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(host: str, port: int, *, dual_stack: bool) -> socket.socket:
        raise OSError(code, "too many")

    monkeypatch.setattr(fd_store, "listen", listen)
    with pytest.raises(PortUnavailable) as caught:
        Listener(22, "ssh").try_open(None)
    assert caught.value.code is RefusalCode.PORT_FAILED
    assert caught.value.reason == reason


async def test_visitors_are_passed_on_until_it_is_closed(log: pytest.LogCaptureFixture) -> None:
    listener = Listener(free_port(), "ssh")
    listener.try_open(LOOPBACK)
    sources: list[tuple[str, int]] = []

    def on_visitor(sock: socket.socket, source: tuple[str, int]) -> None:
        sock.close()
        sources.append(source)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serving(listener, on_visitor))
        with caller_of(listener.port) as visitor:
            await until(lambda: sources)
            assert sources == [visitor.getsockname()]
        listener.close()
        assert refuses(listener.port), "at once"
    assert listener.closed
    assert not listener.open
    assert told(log, "port-open") == [{"agent": "home", "service": "ssh", "port": listener.port}]


async def test_a_busy_port_is_tried_until_it_is_free(mock_clock: trio.testing.MockClock) -> None:
    listener = Listener(free_port(), "ssh")
    opened: list[bool] = []
    async with trio.open_nursery() as nursery:
        with socket.create_server((LOOPBACK, listener.port)):
            nursery.start_soon(serving(listener, opened=lambda: opened.append(listener.open)))
            for _ in range(3):
                await quiet()
                mock_clock.jump(RETRY)
            await quiet()
            assert not opened
        mock_clock.jump(RETRY - 0.01)
        await quiet()
        assert not opened
        mock_clock.jump(0.01)
        await until(lambda: opened)
        assert opened == [True]
        caller_of(listener.port).close()
        listener.close()


async def test_closed_before_it_serves_it_opens_nothing() -> None:
    listener = Listener(free_port(), "ssh")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serving(listener))
        listener.close()
    assert refuses(listener.port)


@pytest.mark.parametrize("_turn", range(8))  # trio shuffles who runs first in a turn
async def test_closed_in_the_turn_in_which_it_would_open_it_stays_closed(
    _turn: int, mock_clock: trio.testing.MockClock
) -> None:
    listener = Listener(free_port(), "ssh")

    async def close() -> None:
        await trio.sleep(RETRY)
        listener.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serving(listener))
        nursery.start_soon(close)
        await quiet()
        mock_clock.jump(RETRY)
    assert refuses(listener.port)


async def test_a_visitor_and_the_close_in_one_turn() -> None:
    listener = Listener(free_port(), "ssh")
    listener.try_open(LOOPBACK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serving(listener))
        await quiet()
        with caller_of(listener.port):
            listener.close()
    assert refuses(listener.port)


async def test_when_the_relay_ends_the_port_is_free() -> None:
    listener = Listener(free_port(), "ssh")
    listener.try_open(LOOPBACK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serving(listener))
        await quiet()
        nursery.cancel_scope.cancel()
    assert refuses(listener.port)
    assert listener.closed
