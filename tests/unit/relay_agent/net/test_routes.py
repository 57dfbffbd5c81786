from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from relay_agent.net import routes
from relay_agent.net.routes import DEBOUNCE, REOPEN, Netlink, Route, watch

WIFI = Route(interface=3, gateway="192.0.2.254", source="192.0.2.7", carrier_changes=0)
LTE = Route(interface=4, gateway="198.51.100.1", source="198.51.100.9", carrier_changes=0)


class FakeNetlink:
    """A kernel whose routes a test sets, and whose changes it announces."""

    def __init__(self) -> None:
        self.routes: dict[str, Route | None] = {}
        self.asked: list[str] = []
        self.closed = False
        self._send, self._changes = trio.open_memory_channel[None](10)

    def announce(self) -> None:
        self._send.send_nowait(None)

    async def wait_change(self) -> None:
        await self._changes.receive()

    def route_to(self, address: str) -> Route | None:
        self.asked.append(address)
        return self.routes.get(address)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeNetlink:
    fake = FakeNetlink()
    monkeypatch.setattr(routes, "Netlink", lambda: fake)
    return fake


async def test_only_another_way_to_the_relay_counts(
    kernel: FakeNetlink, nursery: trio.Nursery
) -> None:
    changes = 0

    def on_change() -> None:
        nonlocal changes
        changes += 1

    kernel.routes = {"203.0.113.5": WIFI}
    nursery.start_soon(watch, lambda: ["203.0.113.5"], trio.sleep_forever, on_change)

    async def after(routes: dict[str, Route | None]) -> int:
        kernel.routes = routes
        kernel.announce()
        await trio.testing.wait_all_tasks_blocked()
        return changes

    await trio.testing.wait_all_tasks_blocked()
    assert changes == 0
    # A router advertisement, a container's interface: the kernel talks, the route is the same.
    assert await after({"203.0.113.5": WIFI, "198.51.100.77": LTE}) == 0
    assert await after({"203.0.113.5": None}) == 1
    assert await after({"203.0.113.5": None}) == 1
    assert await after({"203.0.113.5": LTE}) == 2
    # Down and up again while nobody looked: the same route over a carrier that was lost.
    bounced = Route(4, LTE.gateway, LTE.source, carrier_changes=2)
    assert await after({"203.0.113.5": bounced}) == 3


async def test_without_an_address_the_way_to_anywhere_is_watched(
    kernel: FakeNetlink, nursery: trio.Nursery
) -> None:
    nursery.start_soon(watch, list, trio.sleep_forever, lambda: None)
    await trio.testing.wait_all_tasks_blocked()
    assert kernel.asked == ["192.0.2.1", "2001:db8::1"]


async def test_an_address_that_became_known_is_looked_at_before_its_way_changes(
    kernel: FakeNetlink, nursery: trio.Nursery
) -> None:
    """The relay's, once its name was resolved: the very next change is one."""
    addresses: list[str] = []
    known = trio.Event()
    changes: list[None] = []
    kernel.routes = {"203.0.113.5": WIFI}

    async def wait_addresses() -> None:
        nonlocal known
        await known.wait()
        known = trio.Event()

    nursery.start_soon(watch, lambda: addresses, wait_addresses, lambda: changes.append(None))
    await trio.testing.wait_all_tasks_blocked()
    addresses.append("203.0.113.5")
    known.set()
    await trio.testing.wait_all_tasks_blocked()
    assert not changes
    kernel.routes = {"203.0.113.5": LTE}
    kernel.announce()
    await trio.testing.wait_all_tasks_blocked()
    assert len(changes) == 1


async def test_an_address_that_is_new_is_no_change(
    kernel: FakeNetlink, nursery: trio.Nursery
) -> None:
    addresses = ["203.0.113.5"]
    kernel.routes = {"203.0.113.5": WIFI, "203.0.113.6": LTE}
    nursery.start_soon(
        watch, lambda: addresses, trio.sleep_forever, lambda: pytest.fail("no change")
    )
    await trio.testing.wait_all_tasks_blocked()
    addresses = ["203.0.113.6"]
    kernel.announce()
    await trio.testing.wait_all_tasks_blocked()
    assert kernel.asked[-1] == "203.0.113.6"


def test_it_can_be_closed(real: Netlink) -> None:
    real.close()
    assert real._events.fileno() == real._queries.fileno() == -1


async def test_it_closes_when_it_is_cancelled(kernel: FakeNetlink) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await watch(list, trio.sleep_forever, lambda: None)
    assert kernel.closed


async def test_where_there_is_no_netlink_nothing_is_called(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK")
    with trio.move_on_after(1000) as scope:
        await watch(list, trio.sleep_forever, lambda: pytest.fail("called"))
    assert scope.cancelled_caught


async def test_a_subscription_that_fails_is_begun_anew(
    kernel: FakeNetlink,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The agent must not end for it."""
    caplog.set_level("INFO")

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(kernel, "wait_change", fail)
    with trio.move_on_after(2.5 * REOPEN) as scope:
        await watch(lambda: ["203.0.113.5"], trio.sleep_forever, lambda: None)
    assert scope.cancelled_caught
    assert len(kernel.asked) == 3
    assert [record.msg for record in caplog.records] == ["no-network-events"]


@pytest.fixture
def real() -> Iterator[Netlink]:
    """The kernel's own; a test may put something else in the place of its sockets."""
    opened = Netlink()
    sockets = opened._events, opened._queries
    yield opened
    for sock in sockets:
        sock.close()


def test_the_way_to_this_machine_itself(real: Netlink) -> None:
    route = real.route_to("127.0.0.1")
    assert route is not None
    assert (route.gateway, route.source) == ("", "127.0.0.1")
    assert route.interface == socket.if_nametoindex("lo")
    assert real.route_to("127.0.0.1") == route


def test_what_is_no_address_has_no_way(real: Netlink) -> None:
    assert real.route_to("relay.example") is None
    assert real.route_to("") is None


def test_an_answer_that_does_not_come_is_no_way(
    real: Netlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def send(self, data: bytes) -> int:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    monkeypatch.setattr(real, "_queries", Broken())
    assert real.route_to("127.0.0.1") is None


def test_an_answer_that_came_too_late_is_not_the_next_one_s(
    real: Netlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, nowhere = real.route_to("127.0.0.1"), real.route_to("::2")
    queries = real._queries

    class Late:
        """Has the answer to an earlier question still in its queue."""

        def send(self, data: bytes) -> int:
            return queries.send(data)

        def recv(self, size: int) -> bytes:
            return queries.recv(size)

    monkeypatch.setattr(real, "_sequence", 1000)
    sent: list[bytes] = []
    monkeypatch.setattr(Late, "send", lambda _, data: sent.append(data) or queries.send(data))
    monkeypatch.setattr(real, "_queries", Late())
    assert real.route_to("127.0.0.1") == there
    queries.send(sent[0])
    assert real.route_to("::2") == nowhere
    assert there != nowhere


def link_message(interface: int, *, carrier: bool, kind: int = 16) -> bytes:
    """RTM_NEWLINK or RTM_DELLINK as the kernel lays it out (rtnetlink(7))."""
    body = struct.pack("=BxHiII", 0, 1, interface, 0x1 | (0x10000 if carrier else 0), 0)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


class Pipe:
    """A netlink socket that gives what a test wrote."""

    def __init__(self, *items: bytes | OSError) -> None:
        self.items = [*items, BlockingIOError()]

    def recv(self, _: int) -> bytes:
        item = self.items.pop(0)
        if isinstance(item, OSError):
            raise item
        return item


def carrier_changes(real: Netlink, *items: bytes | OSError) -> int:
    real._events = Pipe(*items)  # type: ignore[assignment]  # stands in for a socket
    real._drain()
    return real._carrier_changes.get(7, 0)


def test_a_carrier_that_goes_and_comes_counts_twice(real: Netlink) -> None:
    down, up = link_message(7, carrier=False), link_message(7, carrier=True)
    assert carrier_changes(real, down + up, up) == 2


def test_statistics_of_a_steady_interface_count_nothing(real: Netlink) -> None:
    assert carrier_changes(real, *[link_message(7, carrier=True)] * 3) == 0


def test_an_interface_that_is_removed_lost_its_carrier(real: Netlink) -> None:
    assert carrier_changes(real, link_message(7, carrier=True, kind=17)) == 1


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 16, struct.pack("=IHHII", 20, 16, 0, 0, 0) + b"abcd", b"\xff" * 7]
)
def test_a_message_cut_short_is_passed_over(real: Netlink, data: bytes) -> None:
    assert carrier_changes(real, data) == 0


def test_news_that_did_not_fit_are_not_fatal(real: Netlink) -> None:
    overrun = OSError(errno.ENOBUFS, "")
    assert carrier_changes(real, overrun, link_message(7, carrier=False)) == 1


def test_any_other_error_is(real: Netlink) -> None:
    with pytest.raises(OSError, match="bad"):
        carrier_changes(real, OSError(errno.EBADF, "bad"))


async def test_changes_are_waited_out(
    real: Netlink, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def readable(_: int) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio.lowlevel, "wait_readable", readable)
    start = trio.current_time()
    await real.wait_change()
    assert trio.current_time() - start == pytest.approx(DEBOUNCE)


def test_a_route_is_read_from_an_ipv6_answer(real: Netlink) -> None:
    gateway, source = socket.inet_pton(10, "fe80::1"), socket.inet_pton(10, "2001:db8::7")
    body = struct.pack("=BBBBBBBBI", 10, 128, 0, 0, 0, 0, 0, 0, 0)
    for kind, value in ((4, struct.pack("=I", 3)), (5, gateway), (7, source)):
        body += struct.pack("=HH", 4 + len(value), kind) + value
    assert real._read_route(body) == Route(3, "fe80::1", "2001:db8::7", 0)
    # Attributes that make no sense end the reading.
    assert real._read_route(body[:12] + b"\0\0\0\0") == Route(0, "", "", 0)


def test_interfaces_are_numbered_in_the_byte_order_of_the_machine(
    real: Netlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many routers are big-endian; carriers are counted by the number that struct reads."""
    monkeypatch.setattr("sys.byteorder", "big")
    body = bytes(12) + struct.pack("=HH", 8, 4) + (3).to_bytes(4, "big")
    assert real._read_route(body).interface == 3
