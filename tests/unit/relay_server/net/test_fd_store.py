from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay_server.net.accept_loop import listen
from relay_server.net.fd_store import LINK, StoredListeners
from tests.support.ports import LOOPBACK, free_port
from tests.support.service_manager import Manager


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with Manager(str(tmp_path / "notify")) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        yield manager


def restarted(manager: Manager) -> StoredListeners:
    """As the next process finds them."""
    manager.obey()
    return StoredListeners(
        [(name, socket.socket(fileno=os.dup(descriptor))) for name, descriptor in manager.store]
    )


def is_refused(port: int) -> bool:
    with socket.socket() as visitor:
        visitor.settimeout(10)
        return visitor.connect_ex((LOOPBACK, port)) != 0


async def test_what_is_open_when_the_process_leaves_is_open_for_the_next(manager: Manager) -> None:
    port = free_port()
    first = StoredListeners()
    sock = first.listen(LOOPBACK, port, dual_stack=False)
    assert manager.names() == [f"listen-{port}-{LOOPBACK}"]
    first.leave()
    first.close(sock)
    assert not is_refused(port), "the caller waits in the kernel's queue"

    second = restarted(manager)
    again = second.listen(LOOPBACK, port, dual_stack=False)
    assert again.getsockname() == (LOOPBACK, port)
    again.accept()[0].close()
    assert manager.names() == [f"listen-{port}-{LOOPBACK}"], "and not twice"
    second.close(again)
    second.close(again)
    assert manager.names() == []
    assert is_refused(port)


async def test_what_nobody_asks_for_is_closed(manager: Manager) -> None:
    ports = sorted({free_port(), free_port()})
    first = StoredListeners()
    sockets = [first.listen(LOOPBACK, port, dual_stack=False) for port in ports]
    first.leave()
    for sock in sockets:
        first.close(sock)
    second = restarted(manager)
    wanted = second.listen(LOOPBACK, ports[0], dual_stack=False)
    assert second.close_unclaimed() == [f"{LOOPBACK}:{port}" for port in ports[1:]]
    assert second.close_unclaimed() == []
    assert manager.names() == [f"listen-{ports[0]}-{LOOPBACK}"]
    assert not is_refused(ports[0])
    assert all(map(is_refused, ports[1:]))
    second.close(wanted)


async def test_an_ipv6_address_has_a_name_without_colons(manager: Manager) -> None:
    port = free_port()
    stored = StoredListeners()
    sock = stored.listen("::1", port, dual_stack=False)
    assert manager.names() == [f"listen-{port}-__1"]
    stored.leave()
    stored.close(sock)
    assert restarted(manager).close_unclaimed() == [f"[::1]:{port}"]


def test_the_socket_unit_says_where_agents_dial_in() -> None:
    sock = listen(LOOPBACK, 0, dual_stack=False)
    stored = StoredListeners([(LINK, sock)])
    assert stored.links == [sock]
    assert stored.close_unclaimed() == []
    sock.close()


def test_a_socket_of_another_name_is_not_ours() -> None:
    sock = listen(LOOPBACK, 0, dual_stack=False)
    stored = StoredListeners([("unknown", sock)])
    assert not stored.links
    assert sock.fileno() == -1


async def test_without_a_store_all_is_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    stored = StoredListeners()
    sock = stored.listen(LOOPBACK, 0, dual_stack=False)
    port = sock.getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        stored.listen(LOOPBACK, port, dual_stack=False)
    stored.close(sock)
    assert is_refused(port)
