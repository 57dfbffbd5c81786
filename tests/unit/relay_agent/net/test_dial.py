"""Dialling over a network made of a table: what each name resolves to, how each address behaves.

The clock jumps as soon as everybody waits, so every delay below is exact.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from protocol.process.address import HostPort
from relay_agent.net.dial import (
    ADDRESS_HEAD_START,
    ASK_AGAIN,
    DIAL_TIMEOUT,
    HOST_HEAD_START,
    LOOK_AGAIN,
    MOST_LOOK_UPS,
    NAME_HEAD_START,
    DialFailed,
    dial,
)

V4, V6 = socket.AF_INET, socket.AF_INET6
UNREACHABLE = os.strerror(errno.ENETUNREACH)
REFUSED = os.strerror(errno.ECONNREFUSED)


@dataclass
class Answer:
    """How a name or an address behaves: after `delay` it raises `error`, or it works."""

    delay: float = 0.0
    error: Exception | None = None

    async def play(self) -> None:
        await trio.sleep(self.delay)
        if self.error is not None:
            raise self.error


SILENT = Answer(math.inf)
REFUSES = Answer(error=ConnectionRefusedError(errno.ECONNREFUSED, "connection refused"))
UNKNOWN = Answer(error=socket.gaierror(socket.EAI_NONAME, "Name or service not known"))


@dataclass
class Network(trio.abc.HostnameResolver, trio.abc.SocketFactory):
    names: dict[str, list[str]] = field(default_factory=dict)
    resolver: dict[str, Answer] = field(default_factory=dict)
    addresses: dict[str, Answer] = field(default_factory=dict)
    look_ups: list[str] = field(default_factory=list)
    dialled: list[tuple[float, str, int]] = field(default_factory=list)
    sockets: list[FakeSocket] = field(default_factory=list)
    without: set[int] = field(default_factory=set)

    async def getaddrinfo(self, host: Any, port: Any, *options: Any, **named: Any) -> list[Any]:
        name = host.decode()
        self.look_ups.append(name)
        await self.resolver.get(name, Answer()).play()
        return [
            (V6, 1, 6, "", (ip, 0, 0, 0)) if ":" in ip else (V4, 1, 6, "", (ip, 0))
            for ip in self.names[name]
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError

    def socket(self, family: Any = V4, *options: Any) -> FakeSocket:
        if family in self.without:
            raise OSError(errno.EAFNOSUPPORT, "address family not supported")
        sock = FakeSocket(self)
        self.sockets.append(sock)
        return sock

    @property
    def open_sockets(self) -> list[FakeSocket]:
        return [sock for sock in self.sockets if not sock.closed]

    def times(self) -> dict[str, float]:
        return {ip: at for at, ip, _ in self.dialled}


class FakeSocket(trio.socket.SocketType):
    def __init__(self, network: Network) -> None:
        self.network = network
        self.options: dict[tuple[int, int], int] = {}
        self.address: Any = None
        self.closed = False

    def setsockopt(self, level: int, option: int, value: Any, *_: Any) -> None:
        self.options[level, option] = value

    async def connect(self, address: Any) -> None:
        ip, port, *_ = address
        self.network.dialled.append((trio.current_time(), ip, port))
        await self.network.addresses.get(ip, Answer()).play()
        self.address = address

    def close(self) -> None:
        self.closed = True


@pytest.fixture
async def network() -> Network:
    made = Network()
    trio.socket.set_custom_hostname_resolver(made)
    trio.socket.set_custom_socket_factory(made)
    return made


def hosts(*texts: str) -> list[HostPort]:
    return [HostPort(*_split(text)) for text in texts]


def _split(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def reason(*texts: str, deadline: float | None = None) -> str:
    with pytest.raises(DialFailed) as failed:
        await dial(hosts(*texts), deadline=deadline)
    text = str(failed.value)
    assert "\n" not in text
    return text


async def test_a_name_is_resolved_and_dialled_without_nagle(
    network: Network, autojump_clock: MockClock
) -> None:
    network.names["relay.test"] = ["203.0.113.9"]
    sock = await dial(hosts("relay.test:7022"))
    assert isinstance(sock, FakeSocket)
    assert sock.address == ("203.0.113.9", 7022)
    assert sock.options == {(socket.IPPROTO_TCP, socket.TCP_NODELAY): 1}
    assert not sock.closed


async def test_an_ipv6_address_keeps_its_scope(network: Network, autojump_clock: MockClock) -> None:
    network.names["relay.test"] = ["2001:db8::1"]
    sock = await dial(hosts("relay.test:7022"))
    assert isinstance(sock, FakeSocket)
    assert sock.address == ("2001:db8::1", 7022, 0, 0)


async def test_a_literal_address_needs_no_resolver(
    network: Network, autojump_clock: MockClock
) -> None:
    sock = await dial(hosts("203.0.113.9:7022"))
    assert isinstance(sock, FakeSocket)
    assert sock.address == ("203.0.113.9", 7022)
    assert network.look_ups == []


async def test_each_dial_resolves_afresh(network: Network, autojump_clock: MockClock) -> None:
    network.names["relay.test"] = ["203.0.113.9"]
    await dial(hosts("relay.test:1"))
    network.names["relay.test"] = ["203.0.113.10"]
    sock = await dial(hosts("relay.test:1"))
    assert isinstance(sock, FakeSocket)
    assert sock.address == ("203.0.113.10", 1)
    assert network.look_ups == ["relay.test"] * 2


async def test_a_silent_host_holds_up_the_next_one_for_its_head_start_only(
    network: Network, autojump_clock: MockClock
) -> None:
    network.addresses = {"203.0.113.1": SILENT}
    await dial(hosts("203.0.113.1:7022", "203.0.113.2:443", "203.0.113.3:443"))
    assert network.dialled == [
        (0.0, "203.0.113.1", 7022),
        (HOST_HEAD_START, "203.0.113.2", 443),
    ]
    assert [sock.address for sock in network.open_sockets] == [("203.0.113.2", 443)]


async def test_a_silent_resolver_holds_up_the_next_host_for_its_head_start_only(
    network: Network, autojump_clock: MockClock
) -> None:
    network.resolver["slow.test"] = SILENT
    await dial(hosts("slow.test:1", "203.0.113.2:2"))
    assert trio.current_time() == HOST_HEAD_START


async def test_a_host_that_fails_is_followed_at_once(
    network: Network, autojump_clock: MockClock
) -> None:
    network.addresses = {"203.0.113.1": REFUSES}
    await dial(hosts("203.0.113.1:7022", "203.0.113.2:443"))
    assert network.times() == {"203.0.113.1": 0.0, "203.0.113.2": 0.0}


async def test_a_slow_first_host_still_wins_over_a_slower_second(
    network: Network, autojump_clock: MockClock
) -> None:
    network.addresses = {"203.0.113.1": Answer(1.5), "203.0.113.2": Answer(1.0)}
    sock = await dial(hosts("203.0.113.1:1", "203.0.113.2:1"))
    assert isinstance(sock, FakeSocket)
    assert sock.address == ("203.0.113.1", 1)
    assert network.open_sockets == [sock]


async def test_the_other_family_is_tried_second(
    network: Network, autojump_clock: MockClock
) -> None:
    network.names["relay.test"] = ["2001:db8::1", "2001:db8::2", "203.0.113.1", "203.0.113.2"]
    network.addresses = dict.fromkeys(network.names["relay.test"], SILENT)
    network.addresses["2001:db8::2"] = Answer()
    await dial(hosts("relay.test:1"))
    assert network.times() == {
        "2001:db8::1": 0.0,
        "203.0.113.1": ADDRESS_HEAD_START,
        "2001:db8::2": 2 * ADDRESS_HEAD_START,
    }
    assert len(network.open_sockets) == 1


@pytest.mark.parametrize("noticing", [True, False])
async def test_two_that_succeed_in_one_turn_leave_one_socket(
    network: Network, autojump_clock: MockClock, noticing: bool
) -> None:
    answer = Answer if noticing else Shielded
    network.names["relay.test"] = ["203.0.113.1", "203.0.113.2"]
    network.addresses = {
        "203.0.113.1": answer(ADDRESS_HEAD_START + 1.0),
        "203.0.113.2": answer(1.0),
    }
    sock = await dial(hosts("relay.test:1"))
    assert len(network.sockets) == 2
    assert network.open_sockets == [sock]


class Shielded(Answer):
    """Too late to be cancelled: the outcome is on its way."""

    async def play(self) -> None:
        with trio.CancelScope(shield=True):
            await super().play()


async def test_every_host_is_named_with_its_reason(
    network: Network, autojump_clock: MockClock
) -> None:
    network.names["two.test"] = ["2001:db8::1", "203.0.113.1"]
    network.resolver["unknown.test"] = UNKNOWN
    network.addresses = {
        "2001:db8::1": Answer(error=OSError(errno.ENETUNREACH, "x")),
        "203.0.113.1": REFUSES,
        "203.0.113.2": REFUSES,
    }
    assert await reason("two.test:7022", "unknown.test:443", "203.0.113.2:1") == (
        f"two.test:7022: 2001:db8::1 {UNREACHABLE}, 203.0.113.1 {REFUSED}; "
        "unknown.test:443: name look-up failed (Name or service not known); "
        f"203.0.113.2:1: {REFUSED}"
    )
    assert trio.current_time() == 0.0
    assert network.open_sockets == []


async def test_a_name_that_is_none_fails_like_any_other(
    network: Network, autojump_clock: MockClock
) -> None:
    assert "name look-up failed (" in await reason("a..b:1")


async def test_an_error_without_a_number_is_told_in_its_own_words(
    network: Network, autojump_clock: MockClock
) -> None:
    network.addresses = {"203.0.113.1": Answer(error=OSError("odd"))}
    assert await reason("203.0.113.1:1") == "203.0.113.1:1: odd"


async def test_a_kernel_without_a_family_falls_back_to_the_other(
    network: Network, autojump_clock: MockClock
) -> None:
    network.names["relay.test"] = ["2001:db8::1", "203.0.113.1"]
    network.without = {V6}
    sock = await dial(hosts("relay.test:1"))
    assert isinstance(sock, FakeSocket)
    assert sock.address == ("203.0.113.1", 1)
    network.without = {V4, V6}
    assert os.strerror(errno.EAFNOSUPPORT) in await reason("relay.test:1")


async def test_one_deadline_covers_names_and_addresses(
    network: Network, autojump_clock: MockClock
) -> None:
    network.names["late.test"] = ["203.0.113.1"]
    network.resolver = {"slow.test": SILENT, "late.test": Answer(4.0)}
    network.addresses = {"203.0.113.1": SILENT, "203.0.113.2": SILENT}
    assert await reason("slow.test:1", "late.test:2", "203.0.113.2:3") == (
        "slow.test:1: name look-up unanswered; "
        "late.test:2: 203.0.113.1 no answer; "
        "203.0.113.2:3: no answer"
    )
    assert trio.current_time() == DIAL_TIMEOUT
    assert network.open_sockets == []


async def test_an_answer_just_before_the_deadline_counts(
    network: Network, autojump_clock: MockClock
) -> None:
    network.addresses = {"203.0.113.1": Answer(DIAL_TIMEOUT - 0.001)}
    await dial(hosts("203.0.113.1:1"))


async def test_a_silent_address_is_asked_again_over_fresh_sockets(
    network: Network, autojump_clock: MockClock
) -> None:
    network.addresses = {"203.0.113.1": SILENT}
    assert await reason("203.0.113.1:1") == "203.0.113.1:1: no answer"
    assert [at for at, _, _ in network.dialled] == [0, 2, 4, 6, 8]
    assert network.open_sockets == []


async def test_a_path_that_heals_answers_the_next_socket(
    network: Network, autojump_clock: MockClock
) -> None:
    network.addresses = {"203.0.113.1": SILENT}

    async def heal() -> None:
        await trio.sleep(ASK_AGAIN - 0.5)
        network.addresses = {}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(heal)
        sock = await dial(hosts("203.0.113.1:1"))
    assert trio.current_time() == ASK_AGAIN
    assert network.open_sockets == [sock]


async def test_an_address_that_refuses_is_not_asked_again(
    network: Network, autojump_clock: MockClock
) -> None:
    network.addresses = {"203.0.113.1": Answer(3.0, REFUSES.error)}
    await reason("203.0.113.1:1")
    assert [at for at, _, _ in network.dialled] == [0, 2]


async def test_the_caller_may_have_less_time(network: Network, autojump_clock: MockClock) -> None:
    network.addresses = {"203.0.113.1": SILENT}
    deadline = trio.current_time() + 0.5
    assert await reason("203.0.113.1:1", "203.0.113.2:1", deadline=deadline) == (
        "203.0.113.1:1: no answer; 203.0.113.2:1: not tried in time"
    )
    assert trio.current_time() == 0.5


async def test_a_name_has_one_look_up_in_flight_for_all_who_want_it_meanwhile(
    network: Network, autojump_clock: MockClock
) -> None:
    network.names["relay.test"] = ["203.0.113.1"]
    network.resolver["relay.test"] = Answer(25.0)
    await reason("relay.test:1", "relay.test:2")
    assert network.look_ups == ["relay.test"]
    await reason("relay.test:1", "relay.test:2")
    await dial(hosts("relay.test:1"))  # the answer to the first look-up, 25 s later
    assert trio.current_time() == 25.0


async def test_an_old_look_up_does_not_keep_the_next_from_asking(
    network: Network, autojump_clock: MockClock
) -> None:
    """It went to the resolver of a network that we left."""
    network.names["relay.test"] = ["203.0.113.1"]
    network.resolver["relay.test"] = SILENT
    await reason("relay.test:1", deadline=trio.current_time() + LOOK_AGAIN)
    network.resolver = {}
    await dial(hosts("relay.test:1"))
    assert trio.current_time() == LOOK_AGAIN
    assert network.look_ups == ["relay.test"] * 2
    await dial(hosts("relay.test:1"))
    assert len(network.look_ups) == 3, "what answered is over"


async def test_look_ups_of_one_name_are_few_whatever_becomes_of_them(
    network: Network, autojump_clock: MockClock
) -> None:
    network.resolver["relay.test"] = SILENT
    for _ in range(10):
        await reason("relay.test:1")
    assert len(network.look_ups) == MOST_LOOK_UPS


async def test_a_failed_look_up_leaves_the_word_to_those_beside_it(
    network: Network, autojump_clock: MockClock
) -> None:
    network.names["relay.test"] = ["203.0.113.1"]
    network.resolver["relay.test"] = Answer(LOOK_AGAIN + 2.0, UNKNOWN.error)
    await reason("relay.test:1", deadline=trio.current_time() + LOOK_AGAIN)
    network.resolver["relay.test"] = Answer(4.0)
    await dial(hosts("relay.test:1"))
    assert trio.current_time() == LOOK_AGAIN + 4.0


async def test_without_a_thread_to_look_up_in_the_name_is_not_found(
    network: Network, autojump_clock: MockClock
) -> None:
    network.resolver["relay.test"] = Answer(0.0, RuntimeError("can't start new thread"))
    assert await reason("relay.test:1") == (
        "relay.test:1: name look-up failed (can't start new thread)"
    )


async def test_two_dials_that_wait_for_one_name_both_learn_that_it_failed(
    network: Network, autojump_clock: MockClock
) -> None:
    network.resolver["relay.test"] = Answer(1.0, UNKNOWN.error)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(reason, "relay.test:1")
    assert network.look_ups == ["relay.test"]


@pytest.mark.parametrize(("resolver", "after"), [(UNKNOWN, 0.0), (SILENT, NAME_HEAD_START)])
async def test_the_last_good_address_is_tried_when_names_fail(
    network: Network, autojump_clock: MockClock, resolver: Answer, after: float
) -> None:
    network.names["relay.test"] = ["203.0.113.1", "203.0.113.2"]
    network.addresses = {"203.0.113.1": REFUSES}
    await dial(hosts("relay.test:7022"))
    network.resolver["relay.test"] = resolver
    network.dialled.clear()
    await dial(hosts("relay.test:443"))
    assert network.dialled == [(after, "203.0.113.2", 443)]


async def test_a_last_good_address_that_fails_does_not_end_the_wait_for_the_name(
    network: Network, autojump_clock: MockClock
) -> None:
    network.names["relay.test"] = ["203.0.113.1"]
    await dial(hosts("relay.test:1"))
    network.names["relay.test"] = ["203.0.113.2"]
    network.resolver["relay.test"] = Answer(5.0)
    network.addresses = {"203.0.113.1": REFUSES}
    sock = await dial(hosts("relay.test:1"))
    assert isinstance(sock, FakeSocket)
    assert sock.address == ("203.0.113.2", 1)


@pytest.mark.parametrize("after", [0.0, 0.5, 1.25, 3.0])
async def test_cancellation_leaves_no_socket(
    network: Network, autojump_clock: MockClock, after: float
) -> None:
    network.names["relay.test"] = ["203.0.113.1", "203.0.113.2"]
    network.addresses = dict.fromkeys(["203.0.113.1", "203.0.113.2", "203.0.113.3"], SILENT)
    with trio.move_on_after(after) as scope:
        await dial(hosts("relay.test:1", "203.0.113.3:1"))
    assert scope.cancelled_caught
    assert network.open_sockets == []


async def test_cancellation_in_the_instant_of_success_leaves_no_socket(
    network: Network, autojump_clock: MockClock
) -> None:
    network.addresses = {"203.0.113.1": Shielded(1.0)}
    with trio.move_on_after(0.5) as scope:
        await dial(hosts("203.0.113.1:1"))
    assert scope.cancelled_caught
    assert len(network.sockets) == 1
    assert network.open_sockets == []


async def test_the_real_network_too() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    sock = await dial([HostPort("127.0.0.1", port)])
    with sock:
        assert sock.getpeername() == ("127.0.0.1", port)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    await listeners[0].aclose()
    assert REFUSED in await reason(f"127.0.0.1:{port}")
