from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from protocol.process.address import HostPort
from protocol.process.cli.command import CommandFailed
from protocol.process.control.client import SOCKET, ask
from protocol.process.state import StateError, StateFolder
from protocol.wire.noise import StaticKey
from relay_server.agents.context import RelayContext
from relay_server.agents.manager import Agents
from relay_server.config import ServerConfig
from relay_server.net import fd_store
from relay_server.net.accept_loop import listen
from relay_server.net.fd_store import StoredListeners
from relay_server.process import run
from relay_server.process.run import REGISTRY_POLL, serve
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import RelayKeys, has_former, load_or_make, rotate
from tests.support.log_records import told
from tests.support.ports import LOOPBACK, free_port
from tests.support.sockets import caller_of, refuses
from tests.support.trio_waiting import quiet

ROOT = Path(run.__file__).parents[2]
Clock = trio.testing.MockClock


def on(*addresses: HostPort) -> ServerConfig:
    return ServerConfig(listen=addresses, bind=LOOPBACK)


# As a process


@contextmanager
def relay_process(state: StateFolder, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "relay_server", "run", "--host", "vps.example.net"]
    process = subprocess.Popen(
        [*command, "--state-dir", str(state.path), *options],
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[bytes], word: bytes) -> bytes:
    """What it says up to the line with `word`."""
    assert process.stderr is not None
    said = b""
    give_up = time.monotonic() + 10
    while word not in said:
        ready, _, _ = select.select([process.stderr], [], [], max(0, give_up - time.monotonic()))
        assert ready, said
        more = os.read(process.stderr.fileno(), 65536)
        assert more, said
        said += more
    return said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_time_with_a_clean_status(
    state: StateFolder, number: signal.Signals
) -> None:
    port = free_port()
    with relay_process(state, "--listen", f"{LOOPBACK}:{port}") as process:
        read_until(process, b"listening")
        with caller_of(port):  # in the middle of its handshake
            began = time.monotonic()
            process.send_signal(number)
            _, said = process.communicate(timeout=5)
        assert time.monotonic() - began < 2.0
    assert process.returncode == 0, said
    assert b"Traceback" not in said
    assert number.name.encode() in said
    assert refuses(port)


def test_a_port_in_use_is_one_line_and_status_1(state: StateFolder) -> None:
    with listen(LOOPBACK, 0, dual_stack=False) as sock:
        address = f"{LOOPBACK}:{sock.getsockname()[1]}"
        with relay_process(state, "--listen", address) as process:
            _, said = process.communicate(timeout=10)
    assert process.returncode == 1
    line = f"relay-server: cannot listen on {address}: Address already in use\n"
    assert said.decode() == line


def test_a_file_in_the_control_sockets_place_is_one_line_and_status_2(state: StateFolder) -> None:
    (state.path / SOCKET).write_text("mine")
    with relay_process(state, "--listen", f"{LOOPBACK}:{free_port()}") as process:
        _, said = process.communicate(timeout=10)
    assert process.returncode == 2, said
    assert b"Traceback" not in said
    assert said.decode().splitlines()[-1].startswith("relay-server: ")
    assert (state.path / SOCKET).read_text() == "mine"


# In this process


@contextmanager
def no_ipv6(monkeypatch: pytest.MonkeyPatch, code: int) -> Iterator[None]:
    def without(host: str, port: int, *, dual_stack: bool) -> socket.socket:
        if ":" in host:
            raise OSError(code, "Address family not supported by protocol")
        return listen(host, port, dual_stack=dual_stack)

    with monkeypatch.context() as patched:
        patched.setattr(fd_store, "listen", without)
        yield


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_without_ipv6_the_default_means_ipv4(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with no_ipv6(monkeypatch, code):
        with run._listen(StoredListeners(), HostPort("::", 0)) as sock:
            assert sock.family == socket.AF_INET
            port = sock.getsockname()[1]
            with pytest.raises(CommandFailed, match=rf"cannot listen on \[::\]:{port}"):
                run._listen(StoredListeners(), HostPort("::", port))
        with pytest.raises(CommandFailed, match=r"\[::1\]:0: Address family"):
            run._listen(StoredListeners(), HostPort("::1", 0))


def test_the_default_takes_both_families() -> None:
    with run._listen(StoredListeners(), HostPort("::", 0)) as sock:
        port = sock.getsockname()[1]
        for host in (LOOPBACK, "::1"):
            socket.create_connection((host, port)).close()


async def test_when_one_port_cannot_be_had_the_others_are_given_back(
    state: StateFolder, registry: Registry
) -> None:
    free = free_port()
    with listen(LOOPBACK, 0, dual_stack=False) as taken:
        config = on(HostPort(LOOPBACK, free), HostPort(*taken.getsockname()))
        with pytest.raises(CommandFailed, match="in use"):
            await serve(config, state, registry, RelayKeys(StaticKey.generate()))
    assert refuses(free)


async def test_a_control_socket_that_cannot_be_made_ends_it(
    state: StateFolder, registry: Registry
) -> None:
    (state.path / SOCKET).write_text("mine")
    port = free_port()
    with pytest.raises(ExceptionGroup) as caught:
        await serve(on(HostPort(LOOPBACK, port)), state, registry, RelayKeys(StaticKey.generate()))
    assert caught.group_contains(StateError, match=r"control\.sock")
    assert refuses(port)


@contextmanager
def _signalled() -> Iterator[None]:
    """Whatever happens, SIGTERM is not left to kill the tests."""
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


async def test_it_answers_the_command_line_until_it_is_told_to_stop(
    state: StateFolder, registry: Registry, log: pytest.LogCaptureFixture
) -> None:
    port, socket_path = free_port(), state.path / SOCKET
    with _signalled():
        async with trio.open_nursery() as nursery:
            config = on(HostPort(LOOPBACK, port))
            nursery.start_soon(serve, config, state, registry, load_or_make(state, registry))
            await quiet()
            asking = partial(trio.to_thread.run_sync, ask, socket_path)
            assert await asking("agents") == {"agents": []}
            assert await asking("refresh") == {}
            os.kill(os.getpid(), signal.SIGTERM)
    assert told(log, "listening") == [{"host": LOOPBACK, "port": port}]
    assert told(log, "stopping") == [{"signal": "SIGTERM"}]
    assert refuses(port)
    assert not socket_path.exists()


class Refreshed:
    """Stands for the agents: counts how often they are told of a change."""

    def __init__(self) -> None:
        self.count = 0
        self.fails = False

    def refresh(self) -> None:
        if self.fails:
            raise StateError("the disk fails")
        self.count += 1


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Refreshed:
    refreshed = Refreshed()
    monkeypatch.setattr(Agents, "refresh", lambda _: refreshed.refresh())
    return refreshed


@pytest.fixture
async def passes(
    registry: Registry, nursery: trio.Nursery, mock_clock: Clock
) -> Callable[[float], Awaitable[None]]:
    """With the registry watched: lets time pass."""
    keys = RelayKeys(StaticKey.generate())
    agents = Agents(RelayContext(ServerConfig(), registry, keys, nursery, StoredListeners()))
    nursery.start_soon(run._watch_registry, registry, agents.refresh)
    await quiet()

    async def pass_by(seconds: float) -> None:
        mock_clock.jump(seconds)
        await quiet()

    return pass_by


def change(state: StateFolder) -> None:
    """As the command line does, with a registry of its own."""
    with Registry(state) as other:
        other.invite("home", os.urandom(16), now=0.0, lifetime=1.0, port_range=range(1, 9))


async def test_a_change_of_the_registry_is_seen_within_a_second(
    state: StateFolder,
    mock_clock: Clock,
    watched: Refreshed,
    passes: Callable[[float], Awaitable[None]],
) -> None:
    await passes(REGISTRY_POLL)
    assert watched.count == 0
    change(state)
    await passes(REGISTRY_POLL - 0.01)
    assert watched.count == 0
    await passes(0.01)
    assert watched.count == 1
    await passes(REGISTRY_POLL)
    assert watched.count == 1


async def test_a_registry_that_cannot_be_read_is_told_of_once_and_tried_again(
    state: StateFolder,
    mock_clock: Clock,
    watched: Refreshed,
    passes: Callable[[float], Awaitable[None]],
    log: pytest.LogCaptureFixture,
) -> None:
    watched.fails = True
    change(state)
    for _ in range(3):
        await passes(REGISTRY_POLL)
    assert told(log, "registry-failed") == [{"reason": "the disk fails"}]
    watched.fails = False
    await passes(REGISTRY_POLL)
    assert watched.count == 1


async def test_a_rotation_is_put_into_effect_and_the_former_key_goes_in_time(
    state: StateFolder, registry: Registry, nursery: trio.Nursery, log: pytest.LogCaptureFixture
) -> None:
    keys, command = load_or_make(state, registry), load_or_make(state, registry)
    renewed: list[bytes] = []
    agents = Agents(RelayContext(ServerConfig(), registry, keys, nursery, StoredListeners()))
    agents.renew_links = lambda: renewed.append(keys.current.public)  # type: ignore[method-assign]
    run._refresh(state, keys, agents)
    assert not renewed
    rotate(state, command)
    run._refresh(state, keys, agents)
    run._refresh(state, keys, agents)
    assert renewed == [command.current.public]
    assert told(log, "key-rotated") == [{"public": command.current.public.hex()}]


async def test_former_keys_are_ended_while_it_runs(
    state: StateFolder,
    registry: Registry,
    nursery: trio.Nursery,
    mock_clock: Clock,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = load_or_make(state, registry)
    registry.invite("home", b"t" * 16, now=0.0, lifetime=1.0, port_range=range(1, 9))
    registry.redeem(b"t" * 16, b"k" * 32, 0.0)
    rotate(state, keys)
    nursery.start_soon(run._watch_followers, state, keys, registry)
    await quiet()
    assert has_former(state)
    registry.follow("home", b"k" * 32, keys.current.public)
    with monkeypatch.context() as patch:
        patch.setattr(StateFolder, "remove", failing_remove)
        for _ in range(2):
            mock_clock.jump(REGISTRY_POLL)
            await quiet()
    assert told(log, "former-keys-kept") == [{"reason": "the disk fails"}]
    mock_clock.jump(REGISTRY_POLL)
    await quiet()
    assert not has_former(state)
    assert told(log, "former-keys-retired") == [{}]


def failing_remove(*_: object) -> None:
    raise StateError("the disk fails")
