"""Floods of strangers, too few descriptors, and no rights: the relay serves on."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.wire.invitation import Invitation
from protocol.wire.noise import Handshake, StaticKey, Suite
from tests.support.blocking_sockets import pair, receive, visit
from tests.support.house import House
from tests.support.ports import LOOPBACK, free_port, wait_until_listening
from tests.support.processes import ProcessUnderTest, plain_environment, run
from tests.support.programs import only_line
from tests.support.recorder import PREFACE, Recorder
from tests.support.ssh import SshServer, read_banner
from tests.support.waiting import LIMIT, eventually

STRANGERS = 5000
# The promise is a second; this is what a busy machine may make of it.
DELAY_LIMIT = 5.0
# 512 half-open callers, with a descriptor, a task and a few KiB each: measured 7 MiB.
GROWTH_LIMIT = 40 * 1024 * 1024
# Half-open callers, and what else a quiet relay holds.
DESCRIPTORS_LIMIT = 512 + 100


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= STRANGERS + 500, f"this test needs more descriptors than {hard}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory(pid: int, what: str) -> int:
    """A figure of /proc/PID/status, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {what}")


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def genuine_first_flight(relay_key: bytes) -> bytes:
    """What whoever knows the relay's key, or has recorded an agent, may send."""
    noise = Handshake(
        suite=Suite.AESGCM,
        prologue=PREFACE,
        initiator=True,
        static=StaticKey.generate(),
        remote_static=relay_key,
    )
    message = noise.write_message()
    return PREFACE + len(message).to_bytes(2, "big") + message


class Strangers:
    """From 5,000 addresses, each with something else to say or nothing, and all of them stay."""

    def __init__(self, port: int, relay_key: bytes) -> None:
        self._port = port
        genuine = genuine_first_flight(relay_key)
        self._said = [
            b"",
            PREFACE,
            b"GET / HTTP/1.1\r\n\r\n",
            PREFACE + b"\x00\x30" + secrets.token_bytes(48),
            genuine,
            genuine[:-1],
        ]
        self.here: list[socket.socket] = []
        self.failed = 0
        self._thread = threading.Thread(target=self._come, daemon=True)
        self._thread.start()

    def _come(self) -> None:
        for number in range(STRANGERS):
            stranger = socket.socket()
            self.here.append(stranger)
            stranger.settimeout(LIMIT)
            source = f"127.{1 + number // 62500}.{number // 250 % 250}.{1 + number % 250}"
            try:
                stranger.bind((source, 0))
                stranger.connect((LOOPBACK, self._port))
                stranger.sendall(self._said[number % len(self._said)])
            except ConnectionError:  # pushed out before it had its say
                self.failed += 1

    def wait(self) -> None:
        self._thread.join(120.0)
        assert not self._thread.is_alive()

    def leave(self) -> None:
        self.wait()
        for stranger in self.here:
            stranger.close()


def seconds_until_back(house: House, way: Recorder) -> float:
    """Cut the agent's link; how long it takes to have another one."""
    mark = len(house.agent.process.log)
    began = time.monotonic()
    way.cut()
    house.agent.process.wait_for_line("link-up", after=mark)
    return time.monotonic() - began


@pytest.mark.usefixtures("many_descriptors")
def test_5000_strangers_keep_no_agent_waiting(own_house: House) -> None:
    relay, agent = own_house.relay, own_house.agent
    way = Recorder(relay.port)
    agent.process.terminate()
    enrolment = agent.state / "enrolment.toml"
    enrolment.write_text(enrolment.read_text().replace(f":{relay.port}", f":{way.port}"))
    agent.start(own_house.raw_port)
    pid = relay.process.pid
    before = memory(pid, "VmRSS")
    with pair(own_house.raw_port, own_house.target) as (visitor, accepted):
        calm = seconds_until_back(own_house, way)
        strangers = Strangers(relay.port, Invitation.decode(own_house.invitation).relay_key)
        try:
            eventually(lambda: len(strangers.here) > STRANGERS // 2, what="half of them are here")
            amid = seconds_until_back(own_house, way)
            most = descriptors(pid)
            strangers.wait()
            late = seconds_until_back(own_house, way)
            most = max(most, descriptors(pid))
        finally:
            strangers.leave()
        # The session went on over all those links.
        visitor.sendall(b"undisturbed")
        assert receive(accepted, 11) == b"undisturbed"
    way.close()
    growth = memory(pid, "VmHWM") - before
    print(
        f"back in {calm:.3f} s before, {amid:.3f} amid, {late:.3f} beside {STRANGERS} strangers;"
        f" {growth / 2**20:.1f} MiB more; {most} descriptors"
    )
    assert max(amid, late) < calm + DELAY_LIMIT
    assert growth < GROWTH_LIMIT
    assert most < DESCRIPTORS_LIMIT


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_accepted(connection: socket.socket) -> bool:
    """Whether the other side, here as well, has taken `connection` off its queue."""
    ends = [f":{port:04X}" for port in (connection.getpeername()[1], connection.getsockname()[1])]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if [address[-5:] for address in fields[1:3]] == ends:
            return fields[9] != "0"  # without an inode as long as nobody has its descriptor
    return False


def test_without_descriptors_the_relay_waits_and_goes_on(own_house: House) -> None:
    relay = own_house.relay.process
    with (
        pair(own_house.raw_port, own_house.target) as (visitor, accepted),
        visit(own_house.relay.port) as first,
    ):
        # One that gives its descriptor back in five seconds: the visitors could have all others.
        eventually(lambda: is_accepted(first), what="a stranger is half-open")
        few = descriptors(relay.pid) + 6
        _, hard = resource.prlimit(relay.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (few, hard))
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(visit(own_house.relay.port))
                stack.enter_context(visit(own_house.openssh_port))
            relay.wait_for_line("accept-failed .*open files")
            began, busy = time.monotonic(), cpu_seconds(relay.pid)
            visitor.sendall(b"undisturbed")
            assert receive(accepted, 11) == b"undisturbed"
            # The strangers' five seconds: so long there is nothing to be had.
            relay.wait_for_line("handshake-failed .*in time")
            busy, waited = cpu_seconds(relay.pid) - busy, time.monotonic() - began
        print(f"{busy:.2f} s of CPU in {waited:.1f} s")
        assert busy < 0.5 + waited / 4
        assert sum("accept-failed" in line for line in relay.log) <= 4  # one a listener
        eventually(
            lambda: read_banner(own_house.dropbear_port).startswith(b"SSH-2.0-"),
            what="a new visitor gets in",
        )
        visitor.sendall(b"undisturbed")
        assert receive(accepted, 11) == b"undisturbed"
    assert own_house.relay.agents()["home"]["status"] == "attached"
    assert sum("link-up" in line for line in relay.log) == 2  # of join, and of run


# Imports first: nobody may read this project's folder where root keeps it for himself.
UNPRIVILEGED = """
import encodings.ascii, encodings.idna, encodings.latin_1, encodings.utf_8
import importlib, os, pkgutil, sys
import relay_agent, relay_server
for package in (relay_agent, relay_server):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
del sys.argv[0]
side = relay_server if sys.argv[0] == "relay-server" else relay_agent
sys.exit(side.__main__.main())
"""


@pytest.fixture
def nobodys_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="relay-nobody-", dir="/tmp"))
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)
    yield folder
    shutil.rmtree(folder)


def test_neither_side_needs_root(nobodys_folder: Path, dropbear: SshServer) -> None:
    environment = plain_environment(nobodys_folder)
    port, public = free_port(), free_port()

    def argv(program: str, *arguments: str) -> list[str]:
        return [sys.executable, "-c", UNPRIVILEGED, program, *arguments]

    relay_argv = argv("relay-server", "run", "--listen", f"{LOOPBACK}:{port}", "--bind", LOOPBACK)
    with ProcessUnderTest([*relay_argv, "--host", LOOPBACK], environment=environment) as relay:
        wait_until_listening(port)
        invite = argv("relay-server", "invite", "home", "--port", str(public))
        invitation = only_line(run(invite, environment=environment).stdout)
        target = f"ssh={LOOPBACK}:{dropbear.port}"
        join = argv("relay-agent", "join", invitation, "--service", target)
        done = run(join, environment=environment, limit=60.0)
        assert done.returncode == 0, done.stderr
        with ProcessUnderTest(argv("relay-agent", "run"), environment=environment) as agent:
            agent.wait_for_line("service-up")
            assert read_banner(public).startswith(b"SSH-2.0-")
            for one in (relay, agent):
                status = Path(f"/proc/{one.pid}/status").read_text()
                assert "\nUid:\t0" not in status
                assert "\nCapEff:\t0000000000000000\n" in status
