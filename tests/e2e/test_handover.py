"""A new relay takes over from the one that runs, and logins run on.

Two ways: it becomes another by itself (SIGUSR2, `relay-server upgrade`), or systemd restarts it and
keeps its sockets meanwhile. The manager is a small one of our own (tests/manager.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.blocking_sockets import pair, receive, was_reset
from tests.support.house import House
from tests.support.programs import Relay
from tests.support.service_manager import Manager
from tests.support.ssh import Login
from tests.support.waiting import LIMIT, eventually

ROUNDS = 10

Restart = Callable[[House], None]


class Counting:
    """An ssh whose far end counts on and on, and whose near end misses no number."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.seen = 0
        self.fault = ""
        self._process = process
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line != b"%d\n" % self.seen:
                self.fault = f"{line!r} instead of {self.seen}"
                return
            self.seen += 1
        self.fault = f"it ended after {self.seen}"

    def goes_on(self) -> None:
        """Numbers come that were counted after now."""
        goal = self.seen + 20
        eventually(lambda: self.fault or self.seen > goal, what="it counts on")
        assert not self.fault


# Paced, as the copy is: both are to last, not to use up the machine.
COUNT = "i=0; while echo $i; do i=$((i+1)); sleep 0.01; done"


class Copying:
    """A copy that goes to the far end and back, in both directions at once, until `finish`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.received = 0
        self._process = process
        self._sent, self._came = hashlib.sha256(), hashlib.sha256()
        self._enough = threading.Event()
        self._threads = [
            threading.Thread(target=each, daemon=True) for each in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self) -> None:
        assert self._process.stdin is not None
        blocks = random.Random(7)
        with self._process.stdin as pipe:
            while not self._enough.wait(0.01):
                block = blocks.randbytes(1 << 16)
                self._sent.update(block)
                pipe.write(block)

    def _read(self) -> None:
        assert self._process.stdout is not None
        while block := self._process.stdout.read(1 << 16):
            self._came.update(block)
            self.received += len(block)

    def goes_on(self) -> None:
        goal = self.received + (1 << 19)
        eventually(lambda: self.received > goal, what="the copy goes on")

    def finish(self) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        assert self._process.wait(LIMIT) == 0
        assert self._came.digest() == self._sent.digest()


def by_exec(house: House) -> None:
    house.relay.process.send(signal.SIGUSR2)


def end(house: House) -> None:
    """As systemd ends a service, and keeps what that leaves."""
    relay, manager = house.relay, house.relay.manager
    assert manager is not None
    relay.process.send(signal.SIGTERM)
    eventually(
        lambda: manager.obey() is not None and not relay.process.running, what="the relay ends"
    )
    assert relay.process.wait() == 0


def by_manager(house: House) -> None:
    """As `systemctl restart` does."""
    end(house)
    house.relay.start_service()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(str(tmp_path / "notify")) as manager:
        yield manager


@pytest.fixture
def kept_house(own_house: House, manager: Manager) -> House:
    """Whose relay is a service."""
    own_house.relay.process.terminate()
    own_house.relay.manager = manager
    mark = len(own_house.agent.process.log)
    own_house.relay.start_service()
    own_house.agent.process.wait_for_line("service-up.*raw", after=mark)
    return own_house


def run_on(house: House, login: Login, restart: Restart) -> None:
    with (
        login.session(house.dropbear_port, COUNT) as counting,
        login.session(house.openssh_port, "exec cat") as copying,
        pair(house.raw_port, house.target) as (visitor, accepted),
    ):
        counter, copy = Counting(counting), Copying(copying)
        for number in range(ROUNDS):
            counter.goes_on()
            copy.goes_on()
            mark = len(house.agent.process.log)
            restart(house)
            # What is said meanwhile is not lost either.
            visitor.sendall(b"to %d" % number)
            accepted.sendall(b"fro %d" % number)
            house.agent.process.wait_for_line("link-up.*resumed=true", after=mark)
            assert receive(accepted, 4) == b"to %d" % number
            assert receive(visitor, 5) == b"fro %d" % number
        counter.goes_on()
        copy.finish()
        # Whoever comes now comes to the same house.
        assert login.ssh(house.dropbear_port, "exit 7").returncode == 7
        # An end passes on as it would have.
        visitor.close()
        assert accepted.recv(1) == b""


def test_logins_and_copies_run_on_through_ten_upgrades(own_house: House, login: Login) -> None:
    pid = own_house.relay.process.pid
    run_on(own_house, login, by_exec)
    assert own_house.relay.process.pid == pid
    assert own_house.relay.process.running


def test_logins_and_copies_run_on_through_ten_restarts(kept_house: House, login: Login) -> None:
    run_on(kept_house, login, by_manager)
    manager = kept_house.relay.manager
    assert manager is not None
    assert "visitor" not in manager.names()
    assert "state" not in manager.names()


def test_the_command_waits_until_the_new_one_answers(own_house: House) -> None:
    with pair(own_house.raw_port, own_house.target) as (visitor, accepted):
        done = own_house.relay.cli("upgrade")
        assert done.returncode == 0, done.stderr
        assert "goes on, with 1 visitor\n" in done.stdout
        visitor.sendall(b"undisturbed")
        assert receive(accepted, 11) == b"undisturbed"


def test_without_a_relay_there_is_nothing_to_upgrade(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay()
    relay.start()
    relay.process.terminate()
    done = relay.cli("upgrade")
    assert done.returncode == 1
    assert "not running" in done.stderr


def sealed(data: bytes) -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(descriptor, data)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0xF)
    return descriptor


UNREADABLE = [
    b"",
    b"SRLYLEFT\0\x63of another version",
    b"SRLYLEFT\0\x01\0\0\0\x04{}{}",
    b"SRLYLEFT\0\x01\0\0\1\0too short",
]


def test_a_state_that_cannot_be_read_is_a_clean_reset(kept_house: House, login: Login) -> None:
    relay, agent, manager = kept_house.relay, kept_house.agent, kept_house.relay.manager
    assert manager is not None
    for state in UNREADABLE:
        with pair(kept_house.raw_port, kept_house.target) as (visitor, accepted):
            mark = len(agent.process.log)
            end(kept_house)
            assert manager.names().count("visitor") == 1
            place = next(at for at, (name, _) in enumerate(manager.store) if name == "state")
            os.close(manager.store[place][1])
            manager.store[place] = "state", sealed(state)
            relay.start_service()
            relay.process.wait_for_line("WARNING sessions?-lost")
            assert was_reset(visitor)
            assert was_reset(accepted), "the agent was told"
        agent.process.wait_for_line("service-up.*raw", after=mark)
    assert login.ssh(kept_house.dropbear_port, "exit 7").returncode == 7


def test_a_stop_for_good_is_told_apart(kept_house: House) -> None:
    """SIGINT, as the unit sends it: visitors and targets are reset at once."""
    with pair(kept_house.raw_port, kept_house.target) as (visitor, accepted):
        kept_house.relay.process.send(signal.SIGINT)
        assert was_reset(visitor)
        kept_house.agent.process.wait_for_line("relay-closing restarting=false")
        assert was_reset(accepted)
    assert kept_house.relay.process.wait() == 0


def test_what_the_manager_does_not_keep_is_reset(kept_house: House) -> None:
    """As with FileDescriptorStoreMax=0, and when the service is stopped."""
    manager = kept_house.relay.manager
    assert manager is not None
    with pair(kept_house.raw_port, kept_house.target) as (visitor, _):
        end(kept_house)
        kept_house.agent.process.wait_for_line("link-down")
        for _, descriptor in manager.store:
            os.close(descriptor)
        manager.store.clear()
        assert was_reset(visitor)
