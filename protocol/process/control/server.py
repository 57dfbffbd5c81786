"""The control socket: how commands talk with the running process (their side is `control.client`).

A Unix socket in the state folder that only the folder's owner (and root) may use. One JSON object
on a line in, one out, and the socket is closed: `{"command": NAME, …}` is answered by what the
command returns, or by `{"error": TEXT}`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from protocol.process.config import ConfigError
from protocol.process.control.client import MAX_REQUEST, TIMEOUT, short_path
from protocol.process.control.schema import Answer
from protocol.process.logs import failure
from protocol.process.state import StateError, StateFolder

log = logging.getLogger(__name__)

Request: TypeAlias = dict[str, Any]
# What takes a moment is awaited; it is cancelled when the caller's time is up.
Command: TypeAlias = Callable[[Request], Answer | Awaitable[Answer]]

# The CLI is started by hand, or by a script or two.
_BACKLOG: Final = 16


async def serve(path: Path, commands: Mapping[str, Command]) -> None:
    """Answer requests until cancelled. Raises StateError if the socket cannot be made.

    The caller holds the state folder's lock, so a socket that is there is a dead process's.
    """
    sock = _listen(path)
    try:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        await trio.serve_listeners(partial(_serve_one, commands), [listener])
    finally:
        _remove(path)
        sock.close()


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        _remove(path)
        sock.setblocking(False)
        # The file inherits this, so there is no moment at which others may use it.
        os.fchmod(sock.fileno(), 0o600)
        with short_path(path) as short:
            sock.bind(short)
        StateFolder(path.parent).give_to_owner(path)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise StateError(f"{path}: cannot be made: {error.strerror}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StateError(f"{path}: expected a socket; move this file away")
        path.unlink()


async def _serve_one(commands: Mapping[str, Command], stream: trio.SocketStream) -> None:
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            with trio.move_on_after(TIMEOUT):
                answer = await _answer(commands, await _receive_line(stream))
                await stream.send_all(json.dumps(answer).encode() + b"\n")


async def _receive_line(stream: trio.SocketStream) -> bytes:
    """Up to the end of the line; cut short if the caller ends early or goes on for too long."""
    received = bytearray()
    while b"\n" not in received and len(received) <= MAX_REQUEST:
        data = await stream.receive_some(MAX_REQUEST)
        if not data:
            break
        received += data
    return bytes(received)


async def _answer(commands: Mapping[str, Command], line: bytes) -> Answer:
    try:
        # Deep nesting overflows the decoder's stack.
        request = json.loads(line) if len(line) <= MAX_REQUEST else None
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        return {"error": "expected one line with a JSON object that has a command"}
    name = request.pop("command")
    if name not in commands:
        return {"error": f"unknown command {name!r}; expected one of {', '.join(commands)}"}
    try:
        answer = commands[name](request)
        return await answer if isinstance(answer, Awaitable) else answer
    except (ConfigError, StateError) as error:
        return {"error": str(error)}
    except Exception:  # a bug in one command must not take the links of all agents with it
        failure(log, "control-command-failed", command=name)
        return {"error": f"it failed at {name}; its log has more"}
