"""The load generator, a process of its own: one visitor that measures what it gets.

    python -m benchmarks.load ADDRESS PORT up SIZE PIECE      from the target to the visitor
    python -m benchmarks.load ADDRESS PORT down SIZE PIECE    from the visitor to the target
    python -m benchmarks.load ADDRESS PORT echo SIZE COUNT    there and back, one after the other

SIZE is in bytes, PIECE what is written at once. A transfer ends when its last byte has arrived at
the other end. On stdout comes a line of JSON: the seconds of a transfer, or of every echo.
"""

from __future__ import annotations

import gc
import json
import socket
import sys
import time
from typing import Final

from tests.support.far_end import ECHO, HEAD, PIECE, SINK, SOURCE

# Echoes before the first that counts: they open the stream and wake everybody.
UNCOUNTED: Final = 50
# For the connection alone; who started this ends it where a transfer does not.
PATIENCE: Final = 10.0


def up(sock: socket.socket, size: int, piece: int) -> float:
    buffer = memoryview(bytearray(PIECE))
    left = size
    began = time.perf_counter()
    sock.sendall(HEAD.pack(SOURCE, size, piece))
    while left:
        count = sock.recv_into(buffer)
        if not count:
            raise EOFError(f"ended {left} bytes early")
        left -= count
    return time.perf_counter() - began


def down(sock: socket.socket, size: int, piece: int) -> float:
    data = memoryview(bytes(piece))
    left = size
    began = time.perf_counter()
    sock.sendall(HEAD.pack(SINK, size, piece))
    while left > 0:
        sock.sendall(data if left >= piece else data[:left])
        left -= piece
    if sock.recv(1) != b"!":
        raise EOFError("ended before all had arrived")
    return time.perf_counter() - began


def echo(sock: socket.socket, size: int, count: int) -> list[float]:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(HEAD.pack(ECHO, 0, 0))
    data = bytes(size)
    times = []
    for _ in range(UNCOUNTED + count):
        began = time.perf_counter()
        sock.sendall(data)
        left = size
        while left:
            piece = len(sock.recv(left))
            if not piece:
                raise EOFError("ended instead of an echo")
            left -= piece
        times.append(time.perf_counter() - began)
    return times[UNCOUNTED:]


def main() -> None:
    address, port, what, first, second = sys.argv[1:]
    gc.disable()  # nothing here is a cycle
    work = {"up": up, "down": down, "echo": echo}[what]
    with socket.create_connection((address, int(port)), timeout=PATIENCE) as sock:
        # A socket with a timeout polls before each call.
        sock.settimeout(None)
        json.dump(work(sock, int(first), int(second)), sys.stdout)


if __name__ == "__main__":
    main()
