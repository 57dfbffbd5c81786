from __future__ import annotations

import errno
import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from protocol.process.cli.command import CommandFailed
from protocol.process.config import ConfigError
from protocol.process.control import client as asking
from protocol.process.control.client import MAX_REQUEST, SOCKET, TIMEOUT, ask
from protocol.process.control.server import Command, Request, serve
from protocol.process.state import StateError

NOBODY = 65534


def echo(request: Request) -> Request:
    return {"got": request}


def broken(_: Request) -> Request:
    raise ZeroDivisionError


def full(_: Request) -> Request:
    raise StateError("no space left on the disk")


def misread(_: Request) -> Request:
    raise ConfigError("server.toml: port: expected a port")


async def slow(_: Request) -> Request:
    await trio.lowlevel.checkpoint()
    return {"took": "a moment"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / SOCKET


@asynccontextmanager
async def server(path: Path) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        commands: dict[str, Command] = {"echo": echo, "broken": broken, "full": full}
        nursery.start_soon(serve, path, commands | {"misread": misread, "slow": slow})
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


async def in_thread(*arguments: Any, **named: Any) -> Any:
    return await trio.to_thread.run_sync(lambda: ask(*arguments, **named))


async def send(path: Path, data: bytes) -> Any:
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(data)
        return json.loads(await receive_all(stream))


# Out of the way of a rule about blocking calls: these do not block a test.


def mode_and_owner(path: Path) -> tuple[int, int] | None:
    if not path.exists():
        return None
    return stat.S_IMODE(path.stat().st_mode), path.stat().st_uid


async def receive_all(stream: trio.SocketStream) -> bytes:
    data = b""
    async for piece in stream:
        data += piece
    return data


# The server


async def test_a_request_is_answered(path: Path) -> None:
    async with server(path):
        assert await in_thread(path, "echo") == {"got": {}}
        assert await in_thread(path, "echo", name="x", n=[1]) == {"got": {"name": "x", "n": [1]}}
        assert mode_and_owner(path) == (0o600, os.geteuid())
    assert mode_and_owner(path) is None
    assert ask(path, "echo") is None


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"garbage\n",
        b'{"command": 5}\n',
        b"\xff\n",
        b"[" * 10_000 + b"\n",
        b'"' + b"x" * MAX_REQUEST + b'"\n',
    ],
)
async def test_a_bad_request_is_told_so(path: Path, line: bytes) -> None:
    async with server(path):
        answer = await send(path, line)
        assert answer == {"error": "expected one line with a JSON object that has a command"}
        assert await in_thread(path, "echo") == {"got": {}}


async def test_a_request_may_come_in_pieces(path: Path) -> None:
    async with server(path), await trio.open_unix_socket(str(path)) as stream:
        for byte in b'{"command": "echo"}\n':
            await stream.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert json.loads(await receive_all(stream)) == {"got": {}}


async def test_a_caller_that_ends_early_is_answered_what_it_sent(path: Path) -> None:
    async with server(path), await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(b'{"command": "ec')
        await stream.send_eof()
        assert "expected one line" in (await receive_all(stream)).decode()


async def test_a_caller_that_goes_away_harms_nobody(path: Path) -> None:
    async with server(path):
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(b'{"command": "echo"}\n')
        await trio.testing.wait_all_tasks_blocked()
        assert await in_thread(path, "echo") == {"got": {}}


async def test_a_caller_that_says_nothing_is_let_go(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with server(path), await trio.open_unix_socket(str(path)) as stream:
        assert await receive_all(stream) == b""
        assert trio.current_time() == pytest.approx(TIMEOUT)


async def test_an_unknown_command_is_refused(path: Path) -> None:
    async with server(path):
        with pytest.raises(CommandFailed, match=r"unknown command 'x'; expected one of echo, "):
            await in_thread(path, "x")


async def test_a_command_that_fails_takes_nothing_with_it(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with server(path):
        with pytest.raises(CommandFailed, match=r"refuses: no space left on the disk$"):
            await in_thread(path, "full")
        with pytest.raises(CommandFailed, match=r"refuses: server\.toml: port: expected a port"):
            await in_thread(path, "misread")
        assert await in_thread(path, "slow") == {"took": "a moment"}
        with pytest.raises(CommandFailed, match=r"refuses: it failed at broken"):
            await in_thread(path, "broken")
        assert await in_thread(path, "echo") == {"got": {}}
    assert "control-command-failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_a_dead_servers_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert ask(path, "echo") is None
    async with server(path):
        assert await in_thread(path, "echo") == {"got": {}}


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(StateError, match=r"expected a socket; move this file away$"):
        trio.run(serve, path, {})
    assert path.read_text() == "mine"


async def test_a_folder_that_is_not_there(path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot be made: No such file or directory$"):
        await serve(path.parent / "none" / "x", {})


async def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    async with server(folder / SOCKET):
        assert await in_thread(folder / SOCKET, "echo") == {"got": {}}


if os.geteuid() == 0:

    async def test_the_socket_belongs_to_the_folders_owner(path: Path) -> None:
        os.chown(path.parent, NOBODY, NOBODY)
        async with server(path):
            assert mode_and_owner(path) == (0o600, NOBODY)


# The CLI's side, against servers that misbehave


@contextmanager
def answering(path: Path, answer: Callable[[socket.socket], object]) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            with listener.accept()[0] as accepted:
                accepted.recv(1000)
                answer(accepted)

        thread = threading.Thread(target=run)
        thread.start()
        yield
        thread.join()


def test_no_folder_means_no_server(tmp_path: Path) -> None:
    assert ask(tmp_path / "none" / SOCKET, "echo") is None


@pytest.mark.parametrize("answer", [b"", b"garbage\n", b"[1]\n", b"\xff\n"])
def test_an_answer_that_makes_no_sense(path: Path, answer: bytes) -> None:
    with (
        answering(path, lambda sock: sock.sendall(answer)),
        pytest.raises(CommandFailed, match=r"answer cannot be understood$"),
    ):
        ask(path, "echo")


def test_an_answer_in_pieces(path: Path) -> None:
    def send_pieces(sock: socket.socket) -> None:
        sock.sendall(b'{"a": ')
        sock.sendall(b"1}\n")

    with answering(path, send_pieces):
        assert ask(path, "echo") == {"a": 1}


def test_an_answer_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MAX_ANSWER", 10)
    with (
        answering(path, lambda sock: sock.sendall(b"x" * 11)),
        pytest.raises(CommandFailed, match=r"answer cannot be understood$"),
    ):
        ask(path, "echo")


def test_a_server_that_hangs_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TIMEOUT", 0.01)
    asked = threading.Event()
    with answering(path, lambda _: asked.wait(10)):
        with pytest.raises(CommandFailed, match=r"does not answer on "):
            ask(path, "echo")
        asked.set()


def test_a_socket_of_somebody_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(CommandFailed, match=r"cannot ask the running process: .* denied"):
        ask(path, "echo")
