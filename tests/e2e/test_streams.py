"""What a plain TCP visitor and its target see of each other: ends, resets and nothing else."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.support.blocking_sockets import (
    PATTERN,
    pair,
    receive,
    receive_to_end,
    reset,
    sending,
    visit,
    was_reset,
)
from tests.support.house import House
from tests.support.programs import services
from tests.support.ssh import read_banner
from tests.support.waiting import eventually


def test_the_visitor_ends_first(house: House) -> None:
    with pair(house.raw_port, house.target) as (visitor, accepted):
        with sending(visitor, PATTERN):
            assert receive_to_end(accepted) == PATTERN
        # The other direction is open still.
        with sending(accepted, PATTERN[::-1]):
            assert receive_to_end(visitor) == PATTERN[::-1]


def test_the_target_ends_first(house: House) -> None:
    with pair(house.raw_port, house.target) as (visitor, accepted):
        with sending(accepted, PATTERN):
            assert receive_to_end(visitor) == PATTERN
        with sending(visitor, PATTERN[::-1]):
            assert receive_to_end(accepted) == PATTERN[::-1]


def test_both_send_and_end_at_once(house: House) -> None:
    with (
        pair(house.raw_port, house.target) as (visitor, accepted),
        sending(visitor, PATTERN * 4),
        sending(accepted, PATTERN * 3),
    ):
        # Nobody reads the one direction before the other is through.
        assert receive_to_end(visitor) == PATTERN * 3
        assert receive_to_end(accepted) == PATTERN * 4


def test_an_end_without_a_byte(house: House) -> None:
    with pair(house.raw_port, house.target) as (visitor, accepted):
        visitor.shutdown(socket.SHUT_WR)
        assert receive_to_end(accepted) == b""
        accepted.shutdown(socket.SHUT_WR)
        assert receive_to_end(visitor) == b""


@pytest.mark.parametrize("unread", [0, 1000, 100_000])
def test_the_visitor_resets(house: House, unread: int) -> None:
    for _ in range(30):
        with pair(house.raw_port, house.target) as (visitor, accepted):
            accepted.sendall(PATTERN[:unread])
            reset(visitor)
            assert was_reset(accepted)


@pytest.mark.parametrize("unread", [0, 1000, 100_000])
def test_the_target_resets(house: House, unread: int) -> None:
    for _ in range(30):  # what the visitor sends may cross the reset at any point of the way
        with pair(house.raw_port, house.target) as (visitor, accepted):
            visitor.sendall(PATTERN[:unread])
            reset(accepted)
            assert was_reset(visitor)


def test_a_reset_after_the_end_takes_nothing_back(house: House) -> None:
    """As when an SSH server has said everything, its exit status last, and then goes at once."""
    size = 50_000  # what the kernel takes for a reader that has not begun
    with pair(house.raw_port, house.target) as (visitor, accepted):
        accepted.sendall(PATTERN[:size])
        accepted.shutdown(socket.SHUT_WR)
        eventually(lambda: is_acknowledged_to_the_end(accepted), what="the agent's kernel has all")
        reset(accepted)
        assert receive_to_end(visitor) == PATTERN[:size]


def is_acknowledged_to_the_end(sock: socket.socket) -> bool:
    fin_wait_2 = 5  # enum in the kernel's tcp_states.h; the first byte of struct tcp_info
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == fin_wait_2


def test_who_does_not_read_stops_the_sender_and_nobody_else(house: House) -> None:
    with pair(house.raw_port, house.target) as (lazy, blocked):
        sent = send_until_it_blocks(blocked)
        with pair(house.raw_port, house.target) as (visitor, accepted):
            with sending(accepted, PATTERN):
                assert receive_to_end(visitor) == PATTERN
            with sending(visitor, PATTERN):
                assert receive_to_end(accepted) == PATTERN
        assert receive(lazy, sent) == (PATTERN * (sent // len(PATTERN) + 1))[:sent]


def send_until_it_blocks(sock: socket.socket) -> int:
    """Send the pattern until nothing was taken for a while, and return how much was."""
    sent, patience = 0, 1.0
    sock.settimeout(patience)
    with contextlib.suppress(TimeoutError):
        while True:
            sent += sock.send(memoryview(PATTERN)[sent % len(PATTERN) :])
            assert sent < 1 << 30, "a gigabyte went into buffers"
    return sent


def test_many_visitors_come_and_go(house: House) -> None:
    for number in range(100):
        with pair(house.raw_port, house.target) as (visitor, accepted):
            visitor.sendall(b"%d" % number)
            visitor.shutdown(socket.SHUT_WR)
            assert receive_to_end(accepted) == b"%d" % number


def test_forty_streams_at_once(house: House) -> None:
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(pair(house.raw_port, house.target)) for _ in range(40)]
        for number, (visitor, accepted) in enumerate(pairs):
            visitor.sendall(PATTERN[: 10_000 + number])
            accepted.sendall(PATTERN[: 20_000 + number])
        for number, (visitor, accepted) in reversed(list(enumerate(pairs))):
            assert receive(accepted, 10_000 + number) == PATTERN[: 10_000 + number]
            assert receive(visitor, 20_000 + number) == PATTERN[: 20_000 + number]


def test_a_target_that_refuses_is_a_reset(own_house: House) -> None:
    own_house.target.close()
    with visit(own_house.raw_port) as visitor:
        assert was_reset(visitor)
    assert read_banner(own_house.dropbear_port).startswith(b"SSH-2.0-")


def test_a_target_is_told_of_its_visitor_where_that_is_configured(own_house: House) -> None:
    agent, target, port = own_house.agent, own_house.target, own_house.raw_port
    agent.stop()
    agent.configure(services(("raw", target.port, port)) + 'proxy_protocol = "v1"\n')
    agent.start(port)
    with visit(port, source="127.0.5.5") as visitor:
        visitor.sendall(b"hello?")
        with target.accept() as accepted:
            said = f"PROXY TCP4 127.0.5.5 0.0.0.0 {visitor.getsockname()[1]} {port}\r\nhello?"
            assert receive(accepted, len(said)) == said.encode()
