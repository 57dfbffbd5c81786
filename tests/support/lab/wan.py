"""A path between two network namespaces that can be spoiled: delay, rate, queue, loss, black hole.

    python -m tests.support.lab.wan ROUTER VPS [--seed N]

holds a TUN device in each of the two namespaces and moves IP packets between them. "up" is from
the router to the VPS, "down" the other way. A packet's way through one direction:

    taken from the TUN device
      └─▶ middlebox: one of a forgotten flow is dropped, and perhaps answered with a RST
        └─▶ black hole: dropped
          └─▶ queue of so many bytes before the bottleneck; a packet that does not fit is dropped
            └─▶ bottleneck: so many bits a second ─▶ random loss ─▶ delay ─▶ the other TUN device

The queue is an account and no list: that the bottleneck is busy until some moment says how many
bytes wait there. So what a packet will meet is known when it is taken, and all that is kept is one
deque a direction, in order of delivery. A change of delay or rate holds for the packets that come
after it; a black hole takes those underway with it, like a cut cable.

Commands come as JSON, one a line on stdin, and each is answered by one line on stdout:

    {"do": "shape", "direction": "up", "delay": 0.02, "rate": 1e6, "queue": 65536, "loss": 0.01}
    {"do": "hole", "direction": "down", "open": true}
    {"do": "forget", "answer": "reset"}     the flows that exist now, as a NAT box loses its table
    {"do": "statistics"}

It ends with the end of its stdin, so it cannot outlive whoever started it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import select
import struct
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tests.support.lab.namespace import enter

DEVICE: Final = "wan0"
MTU: Final = 1500
# Room for any packet of that MTU; the rest tells a longer one, which would be our mistake.
_ROOM: Final = 2048
# Packets taken from one device before the other gets its turn and due ones are delivered.
_BATCH: Final = 64
# In the device's own queue, before ours: enough for what comes while this process waits for a core.
_DEVICE_QUEUE: Final = 4000

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001

_TCP: Final = 6
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10


# --- Middlebox -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The part of a TCP segment that a middlebox looks at."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    sequence: int
    acknowledged: int
    flags: int
    length: int  # of the data, SYN and FIN counting one each

    @property
    def flow(self) -> frozenset[tuple[bytes, int]]:
        """The same for both directions."""
        return frozenset(
            ((self.source, self.source_port), (self.destination, self.destination_port))
        )


def parse_segment(packet: bytes) -> Segment | None:
    """None for anything but TCP right behind the IP header, whole."""
    version = packet[0] >> 4
    if version == 4 and packet[9] == _TCP:
        start = (packet[0] & 15) * 4
        source, destination = packet[12:16], packet[16:20]
        end: int = struct.unpack_from(">H", packet, 2)[0]
    elif version == 6 and packet[6] == _TCP:
        start = 40
        source, destination = packet[8:24], packet[24:40]
        end = start + struct.unpack_from(">H", packet, 4)[0]
    else:
        return None
    ports = struct.unpack_from(">HHIIBB", packet, start)
    source_port, destination_port, sequence, acknowledged, offset, flags = ports
    length = end - start - (offset >> 4) * 4 + bool(flags & _SYN) + bool(flags & _FIN)
    return Segment(
        source=source,
        destination=destination,
        source_port=source_port,
        destination_port=destination_port,
        sequence=sequence,
        acknowledged=acknowledged,
        flags=flags,
        length=length,
    )


def reset_for(segment: Segment) -> bytes | None:
    """The RST that RFC 9293, 3.10.7.1 answers `segment` with; none for a RST."""
    if segment.flags & _RST:
        return None
    if segment.flags & _ACK:
        sequence, acknowledged, flags = segment.acknowledged, 0, _RST
    else:
        sequence, flags = 0, _RST | _ACK
        acknowledged = (segment.sequence + segment.length) & 0xFFFFFFFF
    ports = segment.destination_port, segment.source_port
    tcp = struct.pack(">HHIIBBHHH", *ports, sequence, acknowledged, 5 << 4, flags, 0, 0, 0)
    addresses = segment.destination + segment.source
    check = checksum(addresses + struct.pack(">II", len(tcp), _TCP) + tcp)
    tcp = tcp[:16] + struct.pack(">H", check) + tcp[18:]
    if len(segment.source) == 16:
        return struct.pack(">IHBB", 6 << 28, len(tcp), _TCP, 64) + addresses + tcp
    size = 20 + len(tcp)
    header = struct.pack(">BBHHHBBH", 0x45, 0, size, 0, 0x4000, 64, _TCP, 0) + addresses
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + tcp


def checksum(data: bytes) -> int:
    """RFC 1071's, of a whole number of 16-bit words."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Middlebox:
    """Knows no flow but those that began since it forgot all others.

    Before that it looks at nothing, which keeps the usual way short.
    """

    def __init__(self) -> None:
        self.forgot = False
        self._answers = False
        self._known: set[frozenset[tuple[bytes, int]]] = set()

    def forget(self, *, answers: bool) -> None:
        self.forgot = True
        self._answers = answers
        self._known.clear()

    def refuses(self, packet: bytes) -> tuple[bool, bytes | None]:
        """Whether to drop `packet`, and with what to answer."""
        segment = parse_segment(packet)
        if segment is None:
            return False, None
        if segment.flags & (_SYN | _ACK) == _SYN:
            self._known.add(segment.flow)
        if segment.flow in self._known:
            return False, None
        return True, reset_for(segment) if self._answers else None


# --- One direction -------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Shape:
    delay: float = 0.0  # seconds
    rate: float = 0.0  # bits a second; 0: as fast as it goes
    queue: int = 256 * 1024  # bytes
    loss: float = 0.0  # probability


@dataclass(slots=True, kw_only=True)
class Statistics:
    taken: int = 0
    taken_bytes: int = 0
    delivered: int = 0
    delivered_bytes: int = 0
    # Dropped, by reason:
    queue: int = 0
    loss: int = 0
    hole: int = 0
    forgotten: int = 0
    down: int = 0  # the device it was meant for


@dataclass(slots=True)
class Direction:
    source: int  # TUN devices
    sink: int
    random: random.Random
    middlebox: Middlebox
    shape: Shape = field(default_factory=Shape)
    hole: bool = False
    statistics: Statistics = field(default_factory=Statistics)
    underway: deque[tuple[float, bytes]] = field(default_factory=deque)
    busy_until: float = 0.0  # the bottleneck
    last: float = 0.0  # delivery; packets never overtake each other

    def take(self, now: float) -> bool:
        """Take what the source has, up to a batch; whether there may be more."""
        for _ in range(_BATCH):
            try:
                packet = os.read(self.source, _ROOM)
            except OSError:  # nothing there now
                return False
            self._accept(packet, now)
        return True

    def _accept(self, packet: bytes, now: float) -> None:
        size = len(packet)
        shape, statistics = self.shape, self.statistics
        statistics.taken += 1
        statistics.taken_bytes += size
        if self.middlebox.forgot:
            refused, answer = self.middlebox.refuses(packet)
            if refused:
                statistics.forgotten += 1
                if answer is not None:
                    _write(self.source, answer)
                return
        if self.hole:
            statistics.hole += 1
            return
        leaves = now
        if shape.rate:
            starts = max(now, self.busy_until)
            if (starts - now) * shape.rate / 8 + size > shape.queue:
                statistics.queue += 1
                return
            leaves = self.busy_until = starts + size * 8 / shape.rate
        if shape.loss and self.random.random() < shape.loss:
            statistics.loss += 1
            return
        self.last = max(self.last, leaves + shape.delay)
        self.underway.append((self.last, packet))

    def deliver(self, now: float) -> None:
        underway, statistics = self.underway, self.statistics
        while underway and underway[0][0] <= now:
            _, packet = underway.popleft()
            if _write(self.sink, packet):
                statistics.delivered += 1
                statistics.delivered_bytes += len(packet)
            else:
                statistics.down += 1

    def set_hole(self, is_open: bool) -> None:
        self.hole = is_open
        if is_open:
            self.statistics.hole += len(self.underway)
            self.underway.clear()
            self.busy_until = self.last = 0.0


def _write(device: int, packet: bytes) -> bool:
    try:
        os.write(device, packet)
    except OSError:  # EIO: the interface is down
        return False
    return True


# --- The process ---------------------------------------------------------------------------------


def open_device() -> int:
    """A TUN device in the namespace that this thread is in; it lasts until it is closed."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN_NO_PI))
    return device


class Wan:
    def __init__(self, router: int, vps: int, seed: int) -> None:
        self.middlebox = Middlebox()
        # A generator each, so that the luck of one direction does not depend on the other.
        self.directions = {
            name: Direction(source, sink, random.Random(f"{seed} {name}"), self.middlebox)
            for name, source, sink in (("up", router, vps), ("down", vps, router))
        }
        self._commands = b""

    def run(self) -> None:
        """Until stdin ends."""
        os.set_blocking(0, False)
        directions = tuple(self.directions.values())
        sources = {direction.source: direction for direction in directions}
        with select.epoll() as poll:
            for descriptor in (0, *sources):
                poll.register(descriptor, select.EPOLLIN)
            while True:
                for descriptor, _ in poll.poll(self._until_due()):
                    if descriptor in sources:
                        # What is left makes the next poll return at once.
                        sources[descriptor].take(time.monotonic())
                    elif not self._take_commands():
                        return
                now = time.monotonic()
                for direction in directions:
                    direction.deliver(now)

    def _until_due(self) -> float:
        due = [each.underway[0][0] for each in self.directions.values() if each.underway]
        # Rounded up to a millisecond by poll: the finest this path resolves.
        return max(0.0, min(due) - time.monotonic()) if due else -1

    def _take_commands(self) -> bool:
        data = os.read(0, 1 << 16)
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            _say(self.obey(**json.loads(line)))
        return bool(data)

    def obey(self, *, do: str, **arguments: Any) -> dict[str, Any]:
        match do:
            case "shape":
                direction = self.directions[arguments.pop("direction")]
                for name, value in arguments.items():
                    setattr(direction.shape, name, value)
            case "hole":
                self.directions[arguments["direction"]].set_hole(arguments["open"])
            case "forget":
                self.middlebox.forget(answers=arguments["answer"] == "reset")
            case "statistics":
                return {name: asdict(each.statistics) for name, each in self.directions.items()}
            case _:
                raise ValueError(f"unknown command {do!r}")
        return {}


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Join two network namespaces by a bad path.")
    parser.add_argument("router")
    parser.add_argument("vps")
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed
    # The path must not slow down with the load of those who use it, least of all when short of
    # cores; without the right to this it is only less exact.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    # Entered for good, as this process has no business anywhere else.
    enter(arguments.router)
    router = open_device()
    enter(arguments.vps)
    vps = open_device()
    _say({"seed": seed, "device": DEVICE, "mtu": MTU, "queue": _DEVICE_QUEUE})
    Wan(router, vps, seed).run()


if __name__ == "__main__":
    main()
