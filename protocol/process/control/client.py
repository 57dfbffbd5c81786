"""Ask the process that runs, over its control socket (`control.server`).

A module of its own, since a command that only asks needs no trio.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from protocol.process.cli.command import CommandFailed

SOCKET: Final = "control.sock"
# For a whole exchange: the process answers from memory, so more means that one side hangs.
TIMEOUT: Final = 2.0
# A request has a command and a name or two.
MAX_REQUEST: Final = 16 * 1024
# Thousands of agents or streams at a few hundred bytes each.
MAX_ANSWER: Final = 16 * 1024 * 1024


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Another name for `path`: the address of a Unix socket has at most 107 bytes."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask(path: Path, command: str, **arguments: object) -> dict[str, Any] | None:
    """The running process's answer; None if none runs. Raises CommandFailed."""
    deadline = time.monotonic() + TIMEOUT
    received = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            with short_path(path) as short:
                sock.connect(short)
            sock.sendall(json.dumps({"command": command} | arguments).encode() + b"\n")
            while not received.endswith(b"\n") and len(received) <= MAX_ANSWER:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                data = sock.recv(1 << 16)
                if not data:
                    break
                received += data
        answer = json.loads(received)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (TimeoutError, BlockingIOError):  # the latter: its backlog is full
        raise CommandFailed(f"the running process does not answer on {path}") from None
    except OSError as error:
        raise CommandFailed(f"cannot ask the running process: {path}: {error.strerror}") from None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise CommandFailed("the running process's answer cannot be understood")
    if "error" in answer:
        raise CommandFailed(f"the running process refuses: {answer['error']}")
    return answer
