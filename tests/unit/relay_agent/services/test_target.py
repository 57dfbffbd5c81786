from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from protocol.process.address import HostPort
from relay_agent.services import target as module
from relay_agent.services.target import TARGET_TIMEOUT, dial_target, loopback_source
from tests.support.cancellation import cancelled_at
from tests.support.scripted_relay import Target

VISITOR = "203.0.113.9"


class Resolver(trio.abc.HostnameResolver):
    def __init__(self, answer: list[tuple[int, str]] | Exception) -> None:
        self.answer = answer

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(self.answer, Exception):
            raise self.answer
        return [
            (family, socket.SOCK_STREAM, 0, "", (address, port or 0))
            for family, address in self.answer
        ]

    async def getnameinfo(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


async def test_a_target_sees_the_visitors_own_loopback_address_and_is_armed() -> None:
    target = Target()
    sock = await dial_target(target.address, VISITOR)
    accepted, source = await target.accept()
    assert source == loopback_source(VISITOR)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 0)
    assert sock.gettimeout() == 0.0
    for each in (sock, accepted, target):
        each.close()


async def test_it_is_armed_before_it_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    arm, connect = module.prepare_spliced, socket.socket.connect

    def spy_arm(sock: socket.socket) -> None:
        order.append("arm")
        arm(sock)

    class Spy(socket.socket):
        def connect(self, address: Any) -> None:
            order.append("connect")
            connect(self, address)

    monkeypatch.setattr(module, "prepare_spliced", spy_arm)
    monkeypatch.setattr(module, "_is_here", lambda host: False)
    monkeypatch.setattr(module.socket, "socket", Spy)
    target = Target()
    sock = await dial_target(target.address, VISITOR)
    assert order == ["arm", "connect"]
    sock.close()
    target.close()


async def test_a_target_that_refuses_is_told_in_plain_words() -> None:
    target = Target()
    target.close()
    with pytest.raises(ConnectionRefusedError) as caught:
        await dial_target(target.address, VISITOR)
    assert caught.value.strerror == "Connection refused"


async def test_a_name_with_several_addresses_is_tried_to_the_end() -> None:
    target = Target()
    # One of a family that this kernel may lack, one that refuses, and the one.
    addresses = [(9999, "::1"), (socket.AF_INET, "127.0.0.2"), (socket.AF_INET, "127.0.0.1")]
    trio.socket.set_custom_hostname_resolver(Resolver(addresses))
    sock = await dial_target(HostPort("box.lan", target.address.port), VISITOR)
    accepted, _ = await target.accept()
    for each in (sock, accepted, target):
        each.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "not known"),
        (UnicodeError("label too long"), "label too long"),
        ([], "no address"),
    ],
)
async def test_a_target_without_an_address_is_an_oserror(answer: Any, reason: str) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(answer))
    with pytest.raises(OSError, match=reason):
        await dial_target(HostPort("box.lan", 22), VISITOR)


async def test_a_silent_target_is_given_up_at_its_time(
    jumping_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_answer(fd: int) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio.lowlevel, "wait_writable", no_answer)
    target = Target()
    began = trio.current_time()
    with pytest.raises(TimeoutError, match="no answer within 10 s"):
        await dial_target(target.address, VISITOR)
    assert trio.current_time() - began == TARGET_TIMEOUT
    target.close()


async def test_cancelled_at_any_step_nothing_is_left_open() -> None:
    target = Target()
    step, cancelled = 0, True
    while cancelled:
        step += 1
        sock = None
        with cancelled_at(step) as scope:
            sock = await dial_target(target.address, VISITOR)
        cancelled = scope.cancelled_caught
        assert cancelled == (sock is None)  # a leak would be a ResourceWarning
    assert sock is not None
    sock.close()
    target.close()
    assert step > 1


def test_a_visitor_has_one_address_of_its_own_in_range() -> None:
    seen = set()
    for number in range(3000):
        visitor = str(ipaddress.ip_address(0xCB007100 + 7919 * number))
        source = loopback_source(visitor)
        assert source == loopback_source(visitor)
        seen.add(source)
        first, second, third, last = map(int, source.split("."))
        assert first == 127
        assert 1 <= second <= 254
        assert 0 <= third <= 255
        assert 1 <= last <= 254
    assert len(seen) > 2990  # two of so many may meet by chance


def test_ipv6_visitors_are_told_apart_by_their_network() -> None:
    one = loopback_source("2001:db8:1:2::1")
    assert loopback_source("2001:db8:1:2:ffff::9") == one
    assert loopback_source("2001:db8:1:3::1") != one
    assert loopback_source("fe80::1%eth0") == loopback_source("fe80::1")
    # An IPv4 visitor on an IPv6 socket is what it is, and not one of a single network.
    assert loopback_source("::ffff:203.0.113.9") == loopback_source("203.0.113.9")


@given(name=st.text(st.characters(exclude_categories=["Cs"]), max_size=64))
def test_whatever_a_relay_calls_a_visitor_it_is_no_local_caller(name: str) -> None:
    source = ipaddress.ip_address(loopback_source(name))
    assert source in ipaddress.ip_network("127.0.0.0/8")
    assert source not in ipaddress.ip_network("127.0.0.0/16")


async def test_off_linux_a_target_is_dialled_from_the_only_address_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Elsewhere(socket.socket):
        def bind(self, address: Any) -> None:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    target = Target()
    monkeypatch.setattr(module.socket, "socket", Elsewhere)
    sock = await dial_target(target.address, VISITOR)
    accepted, source = await target.accept()
    assert source == "127.0.0.1"
    for each in (sock, accepted, target):
        each.close()


async def test_other_failures_to_bind_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(socket.socket):
        def bind(self, address: Any) -> None:
            raise OSError(errno.EADDRINUSE, "Address already in use")

    target = Target()
    monkeypatch.setattr(module.socket, "socket", Full)
    with pytest.raises(OSError, match="already in use"):
        await dial_target(target.address, VISITOR)
    target.close()


def test_this_machines_own_addresses_are_known_without_asking_anybody() -> None:
    assert module._is_here("127.0.0.53")
    assert not module._is_here("192.0.2.77")  # nobody has this one (RFC 5737)
    assert not module._is_here("255.255.255.255")  # a broadcast may not even be asked about


def test_the_lan_address_of_this_machine_is_one_of_its_own() -> None:
    """As OpenWrt's dropbear often listens: on the address of the LAN and on no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as question:
        with suppress(OSError):  # a machine without a network has the loopback address alone
            question.connect(("198.51.100.1", 9))
        own = question.getsockname()[0]
    assert module._is_here("127.0.0.1" if own == "0.0.0.0" else own)
