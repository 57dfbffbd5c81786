"""The forwarder keeps its word: what it is told to do to a path can be measured on that path.

The ratios are generous, since the cores are shared with other tests; that they hold at all tells
the real thing from a forwarder that does nothing, or twice as much.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import statistics
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocking_sockets import receive, sending
from tests.support.lab.namespace import Namespace
from tests.support.lab.network import BOTH, DELAY, ROUTER, VPS, Network, Way
from tests.support.lab.wan import (
    Direction,
    Middlebox,
    Segment,
    Shape,
    checksum,
    parse_segment,
    reset_for,
)
from tests.support.waiting import LIMIT, eventually

# IP and UDP headers.
HEADERS = 28
SIZE = 1000
PORT = 9
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; not in Python's socket module
VPS_IPV6, ROUTER_IPV6 = "2001:db8::1", "2001:db8::2"


@pytest.fixture
def clear(network: Network) -> Network:
    """A path that does nothing to what goes over it."""
    network.wan.shape(delay=0, rate=0)
    return network


class Datagrams:
    """UDP sockets at both ends of the path, joined in one way."""

    def __init__(self, lab: Network, way: Way) -> None:
        near, far = (lab.router, lab.vps) if way == "up" else (lab.vps, lab.router)
        address = VPS if way == "up" else ROUTER
        self.sink = udp_socket(far)
        # The limit of the machine applies to the plain option, even for root.
        self.sink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
        self.sink.bind((address, PORT))
        self.sink.settimeout(0.5)
        self.source = udp_socket(near)
        self.source.connect((address, PORT))

    def send(self, *numbers: int, size: int = SIZE) -> None:
        for number in numbers:
            self.source.send(struct.pack(">I", number) + bytes(size - 4))

    def receive(self) -> list[int]:
        """The numbers of all that come until none comes for a while."""
        numbers = []
        with contextlib.suppress(TimeoutError):
            while True:
                numbers.append(struct.unpack_from(">I", self.sink.recv(2048))[0])
        return numbers

    def close(self) -> None:
        self.sink.close()
        self.source.close()


def udp_socket(namespace: Namespace) -> socket.socket:
    with namespace.entered():
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


@contextlib.contextmanager
def datagrams(lab: Network, way: Way) -> Iterator[Datagrams]:
    ends = Datagrams(lab, way)
    try:
        yield ends
    finally:
        ends.close()


@contextlib.contextmanager
def tcp_pair(
    lab: Network, *, host: str = VPS, family: socket.AddressFamily = socket.AF_INET
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection from the router to the VPS."""
    with lab.vps.entered():
        listener = socket.create_server((host, 0), family=family)
    with listener, lab.router.entered():
        router = socket.create_connection(listener.getsockname()[:2], timeout=LIMIT)
        vps, _ = listener.accept()
    vps.settimeout(LIMIT)
    with router, vps:
        yield router, vps


def round_trip(lab: Network, count: int = 15) -> float:
    """The median, in seconds, of a byte's way to the VPS and back."""
    with tcp_pair(lab) as (router, vps):
        router.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(count):
            began = time.monotonic()
            router.sendall(b"?")
            vps.sendall(receive(vps, 1))
            receive(router, 1)
            trips.append(time.monotonic() - began)
    return statistics.median(trips)


def goodput(lab: Network, way: Way, seconds: float, rate: float) -> float:
    """Bits a second that TCP carries over the path, by a transfer that should take `seconds`."""
    size = int(rate * seconds / 8)
    with tcp_pair(lab) as (router, vps):
        source, sink = (router, vps) if way == "up" else (vps, router)
        with sending(source, bytes(size)):
            receive(sink, 1)
            began = time.monotonic()
            receive(sink, size - 1)
            return size * 8 / (time.monotonic() - began)


# --- Delay, rate, queue, loss --------------------------------------------------------------------


def test_a_clear_path_adds_little(clear: Network) -> None:
    assert round_trip(clear) < 0.01


def test_delay_is_each_way_s_own(clear: Network) -> None:
    clear.wan.shape("up", delay=0.04)
    assert 0.04 <= round_trip(clear) < 0.06
    clear.wan.shape("down", delay=0.03)
    assert 0.07 <= round_trip(clear) < 0.09


def test_a_shorter_delay_lets_nothing_overtake(clear: Network) -> None:
    clear.wan.shape(delay=0.3)
    with datagrams(clear, "up") as ends:
        ends.send(1)
        eventually(lambda: clear.wan.statistics()["up"]["taken"], what="the first is underway")
        clear.wan.shape(delay=0)
        ends.send(2)
        assert ends.receive() == [1, 2]


@pytest.mark.parametrize("way", BOTH)
@pytest.mark.parametrize("megabits", [1, 10])
def test_rate(clear: Network, way: Way, megabits: int) -> None:
    rate = megabits * 1e6
    clear.wan.shape(way, rate=rate, queue=100_000)
    # Headers take 4 %, and a queue that was filled at the start hides a little of the time.
    assert 0.8 * rate < goodput(clear, way, 1.5, rate) < 1.2 * rate


def test_one_way_s_rate_is_not_the_other_s(clear: Network) -> None:
    clear.wan.shape("up", rate=1e6)
    assert goodput(clear, "down", 0.5, 2e7) > 5e6


def test_it_keeps_up_with_50_megabits(clear: Network) -> None:
    clear.wan.shape(delay=0.005, rate=5e7, queue=200_000)
    began = processor_time(clear.wan.pid)
    reached = goodput(clear, "down", 2.0, 5e7)
    spent = processor_time(clear.wan.pid) - began
    print(f"{reached / 1e6:.1f} Mbit/s, {spent / 2.0:.0%} of a core")
    assert reached > 3.5e7


def processor_time(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_what_the_queue_cannot_hold_is_dropped_at_its_tail(clear: Network) -> None:
    room = 20
    clear.wan.shape("up", rate=1e6, queue=room * (SIZE + HEADERS) + SIZE // 2)
    with datagrams(clear, "up") as ends:
        ends.send(*range(200))
        arrived = ends.receive()
    # While the burst was sent, some left the queue: one every 8 ms.
    assert room <= len(arrived) <= room + 10
    assert arrived[:room] == list(range(room))
    assert clear.wan.statistics()["up"]["queue"] == 200 - len(arrived)


def test_the_queue_delays_what_waits_in_it(clear: Network) -> None:
    clear.wan.shape("up", rate=1e6, queue=1 << 20)
    with datagrams(clear, "up") as ends:
        began = time.monotonic()
        ends.send(*range(50))
        assert ends.sink.recv(2048)
        for _ in range(49):
            ends.sink.recv(2048)
        due = 50 * (SIZE + HEADERS) * 8 / 1e6
        assert 0.95 * due < time.monotonic() - began < 1.3 * due


def test_loss(clear: Network) -> None:
    clear.wan.shape("up", loss=0.1)
    with datagrams(clear, "up") as ends:
        ends.send(*range(2000), size=100)
        lost = 2000 - len(ends.receive())
    # Five standard deviations to either side.
    assert 130 < lost < 270, f"seed {clear.wan.seed}"
    assert clear.wan.statistics()["up"]["loss"] == lost


def test_the_same_seed_loses_the_same() -> None:
    assert survivors(7) == survivors(7)
    assert survivors(7) != survivors(8)


def survivors(seed: int) -> list[int]:
    """Which of a hundred get through, with sockets for devices: nobody else sends over those."""
    before, source = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sink, after = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with before, source, sink, after:
        source.setblocking(False)
        after.setblocking(False)
        shape = Shape(loss=0.5)
        direction = Direction(
            source.fileno(), sink.fileno(), random.Random(seed), Middlebox(), shape
        )
        for number in range(100):
            before.send(bytes([number]))
            assert not direction.take(0.0)
            direction.deliver(0.0)
        numbers: list[int] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                numbers += after.recv(1)
        return numbers


# --- Black hole, middlebox, interface ------------------------------------------------------------


@pytest.mark.parametrize("way", BOTH)
def test_a_black_hole_is_one_way_s(clear: Network, way: Way) -> None:
    other: Way = "down" if way == "up" else "up"
    clear.wan.hole(way)
    with datagrams(clear, way) as ends:
        ends.send(1)
        assert ends.receive() == []
        clear.wan.mend()
        ends.send(2)
        assert ends.receive() == [2]
    clear.wan.hole(way)
    with datagrams(clear, other) as ends:
        ends.send(3)
        assert ends.receive() == [3]


def test_a_black_hole_takes_what_is_underway(clear: Network) -> None:
    clear.wan.shape(delay=0.3)
    with datagrams(clear, "up") as ends:
        ends.send(1)
        eventually(lambda: clear.wan.statistics()["up"]["taken"], what="it is underway")
        clear.wan.hole()
        clear.wan.mend()
        assert ends.receive() == []
        ends.send(2)
        assert ends.receive() == [2]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_forgotten_flows_are_reset_at_both_ends(
    network: Network, family: socket.AddressFamily
) -> None:
    for namespace, address in ((network.vps, VPS_IPV6), (network.router, ROUTER_IPV6)):
        namespace.ip(f"addr add {address}/64 dev {network.wan.device} nodad")
    host = VPS if family == socket.AF_INET else VPS_IPV6
    with tcp_pair(network, host=host, family=family) as (router, vps):
        network.wan.forget_flows(answer="reset")
        for end in (router, vps):
            end.sendall(b"anybody there?")
            with pytest.raises(ConnectionResetError):
                end.recv(1)
    with tcp_pair(network, host=host, family=family) as (router, vps):
        router.sendall(b"known again")
        assert receive(vps, 11) == b"known again"


def test_an_idle_forgotten_flow_learns_of_nothing(network: Network) -> None:
    with tcp_pair(network) as (_, vps):
        network.wan.forget_flows(answer="reset")
        vps.settimeout(20 * DELAY)
        with pytest.raises(TimeoutError):
            vps.recv(1)


def test_flows_are_forgotten_in_silence(network: Network) -> None:
    with tcp_pair(network) as (router, vps):
        network.wan.forget_flows(answer="silence")
        router.sendall(b"anybody there?")
        vps.settimeout(20 * DELAY)
        with pytest.raises(TimeoutError):
            vps.recv(1)
    assert round_trip(network, 3) > 0


def test_an_interface_that_is_down(network: Network) -> None:
    with datagrams(network, "down") as ends:
        network.set_router_interface(is_up=False)
        ends.send(1)
        assert ends.receive() == []
        assert network.wan.statistics()["down"]["down"] > 0
        network.set_router_interface(is_up=True)
        ends.send(2)
        assert ends.receive() == [2]
    assert round_trip(network, 3) > 0


def test_it_ends_with_its_stdin(network: Network) -> None:
    network.wan.stop()
    with pytest.raises(AssertionError, match="wan0"):
        network.router.ip("link show wan0")


# --- Segments ------------------------------------------------------------------------------------


def segment(*, flags: int, length: int = 0, family: int = 4) -> bytes:
    """By hand: source port 1000, destination port 2000, sequence 7, acknowledged 9."""
    tcp = struct.pack(">HHIIBBHHH", 1000, 2000, 7, 9, 5 << 4, flags, 0, 0, 0) + bytes(length)
    if family == 6:
        addresses = bytes(15) + b"\x01" + bytes(15) + b"\x02"
        return struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64) + addresses + tcp
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0)
    return header + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + tcp


SYN, RST, ACK = 0x02, 0x04, 0x10


@pytest.mark.parametrize("family", [4, 6])
def test_a_segment_with_an_ack_is_answered_where_it_expects_to_go_on(family: int) -> None:
    answer = answer_to(segment(flags=ACK, length=5, family=family))
    assert (answer.source_port, answer.destination_port) == (2000, 1000)
    assert (answer.sequence, answer.flags) == (9, RST)


@pytest.mark.parametrize("family", [4, 6])
def test_a_segment_without_an_ack_is_acked(family: int) -> None:
    answer = answer_to(segment(flags=SYN, length=5, family=family))
    assert (answer.sequence, answer.acknowledged, answer.flags) == (0, 7 + 5 + 1, RST | ACK)


def answer_to(packet: bytes) -> Segment:
    asked = parse_segment(packet)
    assert asked is not None
    packet = reset_for(asked) or b""
    answer = parse_segment(packet)
    assert answer is not None
    assert (answer.source, answer.destination) == (asked.destination, asked.source)
    tcp = packet[-20:]
    pseudo = answer.source + answer.destination + struct.pack(">II", len(tcp), 6)
    assert checksum(pseudo + tcp) == 0
    assert packet[0] >> 4 == 6 or checksum(packet[:20]) == 0
    return answer


def test_a_reset_is_not_answered() -> None:
    asked = parse_segment(segment(flags=RST))
    assert asked is not None
    assert reset_for(asked) is None


def test_what_is_not_tcp_passes_a_middlebox_that_forgot() -> None:
    middlebox = Middlebox()
    middlebox.forget(answers=True)
    udp = bytearray(segment(flags=0))
    udp[9] = 17
    assert middlebox.refuses(bytes(udp)) == (False, None)
    neither = bytes([0x10]) + bytes(39)
    assert middlebox.refuses(neither) == (False, None)


def test_a_middlebox_knows_the_flows_that_began_since() -> None:
    middlebox = Middlebox()
    middlebox.forget(answers=False)
    assert middlebox.refuses(segment(flags=ACK)) == (True, None)
    # The second half of a handshake begins nothing.
    assert middlebox.refuses(segment(flags=SYN | ACK)) == (True, None)
    assert middlebox.refuses(segment(flags=SYN)) == (False, None)
    assert middlebox.refuses(segment(flags=ACK)) == (False, None)
    middlebox.forget(answers=False)
    assert middlebox.refuses(segment(flags=ACK)) == (True, None)
