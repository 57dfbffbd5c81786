from __future__ import annotations

import logging
import resource
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from protocol.errors import DenialCode, LinkDenied, LinkLost, NoAnswer
from protocol.process.rate_limit import LINES, PERIOD
from protocol.process.state import StateError
from protocol.transport.sockets import receive_exactly, send_all
from protocol.wire.hello import encode_preface
from protocol.wire.noise import Handshake, StaticKey, Suite
from relay_server.agents.handshakes import REGISTRY_RETRY
from relay_server.agents.reasons import HandshakeFailure
from relay_server.registry.registry import EnrolledAgent
from tests.support.log_records import told
from tests.support.ports import free_port
from tests.support.relay import Relay, Router, running
from tests.support.sockets import caller_of, receive_to_end, tcp_pair
from tests.support.trio_waiting import quiet, until

Clock = trio.testing.MockClock
GARBAGE = b"GET / HTTP/1.1\r\nHost: example.net\r\n\r\n"


def first_flight(relay: Relay) -> bytes:
    """Preface and message 1, as an agent or whoever recorded it sends them."""
    preface = encode_preface(Suite.AESGCM)
    noise = Handshake(
        suite=Suite.AESGCM,
        prologue=preface,
        initiator=True,
        static=StaticKey.generate(),
        remote_static=relay.key.public,
    )
    first = noise.write_message()
    return preface + len(first).to_bytes(2, "big") + first


async def answer_to(sock: socket.socket) -> bytes:
    """All that comes until the relay closes."""
    with sock:
        try:
            return await receive_to_end(sock)
        except ConnectionResetError:
            return b""


def half_open(relay: Relay) -> int:
    return len(relay.handshakes._half_open)


def caller_without_a_word(relay: Relay) -> socket.socket:
    sock = caller_of(relay.port)
    with suppress(OSError):  # closed already
        sock.shutdown(socket.SHUT_WR)
    return sock


async def idle_caller(relay: Relay) -> socket.socket:
    count = half_open(relay)
    sock = caller_of(relay.port)
    relay.leftovers.append(sock)
    await until(lambda: half_open(relay) > count)
    return sock


# Strangers


@pytest.mark.parametrize("sent", [GARBAGE, bytes(200), b"SSH-2.0-scanner\r\n", b"S"])
async def test_garbage_gets_no_byte_and_one_line(
    relay: Relay, sent: bytes, log: pytest.LogCaptureFixture
) -> None:
    sock = caller_of(relay.port)
    await send_all(sock, sent)
    sock.shutdown(socket.SHUT_WR)
    assert await answer_to(sock) == b""
    await quiet()
    (failed,) = log.records
    assert failed.msg == "handshake-failed"
    assert told(log, "handshake-failed")[0]["address"] == "127.0.0.1"
    assert half_open(relay) == 0


async def test_who_looks_in_and_leaves_is_one_line(
    relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    caller_of(relay.port).close()
    await until(lambda: told(log, "handshake-failed"))
    (failed,) = told(log, "handshake-failed")
    assert failed["reason"] == "closed before the handshake was done"


async def test_a_reset_is_one_line(relay: Relay, log: pytest.LogCaptureFixture) -> None:
    sock = await idle_caller(relay)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    await until(lambda: told(log, "handshake-failed"))
    assert told(log, "handshake-failed")[0]["reason"] == "Connection reset by peer"


@pytest.mark.parametrize("proves", [False, True])
async def test_the_deadline_is_absolute_whatever_drips(
    relay: Relay, mock_clock: Clock, proves: bool, log: pytest.LogCaptureFixture
) -> None:
    """A byte each eighth of a second: of message 1, or once that is genuine, of message 3."""
    flight = first_flight(relay)
    drips = [flight[index : index + 1] for index in range(39)]
    if proves:
        drips = [flight, b"\x0f", *[b"\0"] * 37]
    sock = await idle_caller(relay)
    for drip in drips:
        await send_all(sock, drip)
        mock_clock.jump(0.125)
        await quiet()
        assert half_open(relay) == 1
    mock_clock.jump(0.125)
    await until(lambda: half_open(relay) == 0)
    assert bool(await answer_to(sock)) == proves
    assert told(log, "handshake-failed") == [
        {"address": "127.0.0.1", "reason": "no handshake in time"}
    ]


async def test_idle_callers_delay_nobody(relay: Relay) -> None:
    idle = [await idle_caller(relay) for _ in range(20)]
    await relay.attached()
    for one in idle:
        one.close()


async def test_at_the_bound_the_oldest_who_proved_nothing_goes(
    tmp_path: Path, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, half_open=3) as relay:
        proved = await idle_caller(relay)
        await send_all(proved, first_flight(relay))
        await receive_exactly(proved, 2)
        oldest, younger = await idle_caller(relay), await idle_caller(relay)
        await relay.attached()
        assert await answer_to(oldest) == b""
        assert told(log, "handshake-failed") == [
            {"address": "127.0.0.1", "reason": "pushed out by newer callers"}
        ]
        assert half_open(relay) == 2
        proved.close()
        younger.close()


async def test_one_source_has_so_many_places(
    tmp_path: Path, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, half_open_per_source=2) as relay:
        router = relay.enrol()
        first, second = await idle_caller(relay), await idle_caller(relay)
        with pytest.raises(LinkLost):
            await router.attach()
        assert told(log, "handshake-failed")[0]["reason"] == "too many attempts from there"
        first.close()
        await until(lambda: half_open(relay) == 1)
        await router.attach()
        second.close()


async def test_failures_use_a_source_up_and_successes_do_not(
    tmp_path: Path, mock_clock: Clock
) -> None:
    async with running(tmp_path, attempts_per_source=3, attempts_per_second=0.5) as relay:
        router = relay.enrol()
        for _ in range(10):
            await router.resume() if router.session else await router.attach()
            await router.cut()
        for _ in range(3):
            sock = await idle_caller(relay)
            sock.close()
            await until(lambda: half_open(relay) == 0)
        with pytest.raises(LinkLost):
            await router.resume()
        mock_clock.jump(2.0)
        await router.resume()


async def test_a_flood_is_ten_lines_and_a_count(
    tmp_path: Path, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, attempts_per_source=5) as relay:
        failures = LINES + 7
        for _ in range(failures):
            assert await answer_to(caller_without_a_word(relay)) == b""
            await quiet()
        assert len(told(log, "handshake-failed")) == LINES
        assert not told(log, "handshakes-failed")
        mock_clock.jump(PERIOD)
        await until(lambda: told(log, "handshakes-failed"))
        assert told(log, "handshakes-failed") == [{"more": failures - LINES}]
        caller_of(relay.port).close()
        await until(lambda: len(told(log, "handshake-failed")) == LINES + 1)
        mock_clock.jump(PERIOD)
        await quiet()
        assert len(told(log, "handshakes-failed")) == 1


async def test_the_noise_of_strangers_does_not_hide_the_trouble_of_agents(
    relay: Relay, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    for _ in range(LINES + 1):
        await answer_to(caller_without_a_word(relay))
    await quiet()
    before = len(told(log, "handshake-failed"))
    sock = await idle_caller(relay)
    await send_all(sock, first_flight(relay) + b"\0\0")
    await answer_to(sock)
    await quiet()
    assert before == LINES
    assert told(log, "handshake-failed")[before:] == [
        {"address": "127.0.0.1", "reason": "handshake message of 0 bytes"}
    ]


# Agents


async def test_an_unknown_agent_is_told_so(relay: Relay, log: pytest.LogCaptureFixture) -> None:
    stranger = Router(relay, StaticKey.generate())
    with pytest.raises(LinkDenied, match="needs an invitation") as caught:
        await stranger.attach()
    assert caught.value.code == DenialCode.UNKNOWN_AGENT
    (denied,) = told(log, "agent-denied")
    assert denied["key"] == stranger.key.public.hex()
    assert half_open(relay) == 0
    assert not relay.agents.overview()


async def test_a_revoked_agent_is_told_so(relay: Relay) -> None:
    router = relay.enrol("home")
    relay.registry.revoke("home", 0.0)
    with pytest.raises(LinkDenied) as caught:
        await router.attach()
    assert caught.value.code == DenialCode.REVOKED


async def test_a_denial_that_cannot_be_sent_is_one_line(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    async def lost(*_: object) -> None:
        raise LinkLost("sending failed: Broken pipe")

    monkeypatch.setattr("relay_server.agents.handshakes.Arrival.deny", lost)
    with pytest.raises(LinkLost):
        await Router(relay, StaticKey.generate()).attach()
    assert told(log, "handshake-failed")[0]["reason"] == "sending failed: Broken pipe"


async def test_a_token_enrols_and_may_be_shown_again(
    relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    token = relay.invite("home", port)
    router = Router(relay, StaticKey.generate())
    welcome = await router.attach(token=token)
    assert (welcome.name, welcome.ports) == ("home", (port,))
    await router.attach(token=token)
    assert told(log, "agent-enrolled")[0] == {"agent": "home", "ports": [port]}
    with pytest.raises(LinkDenied) as caught:
        await Router(relay, StaticKey.generate()).attach(token=token)
    assert caught.value.code == DenialCode.TOKEN
    assert "used by another agent" in str(caught.value)


async def test_an_unknown_token_is_refused(relay: Relay) -> None:
    with pytest.raises(LinkDenied) as caught:
        await Router(relay, StaticKey.generate()).attach(token=bytes(16))
    assert caught.value.code == DenialCode.TOKEN


async def test_guesses_cost_no_write_and_use_their_source_up(
    tmp_path: Path, mock_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, attempts_per_source=3, attempts_per_second=1) as relay:
        monkeypatch.setattr(relay.registry, "redeem", None)
        for guess in range(3):
            with pytest.raises(LinkDenied, match="unknown"):
                await Router(relay, StaticKey.generate()).attach(token=bytes([guess] * 16))
        with pytest.raises(LinkLost):
            await Router(relay, StaticKey.generate()).attach(token=bytes(16))
        mock_clock.jump(1.0)
        with pytest.raises(LinkDenied, match="unknown"):
            await Router(relay, StaticKey.generate()).attach(token=bytes(16))


async def test_an_expired_token_is_refused(relay: Relay) -> None:
    token = bytes(range(16))
    relay.registry.invite("home", token, now=0.0, lifetime=60.0, port_range=range(11111, 11112))
    with pytest.raises(LinkDenied, match="expired") as caught:
        await Router(relay, StaticKey.generate()).attach(token=token)
    assert caught.value.code == DenialCode.TOKEN


async def test_a_registry_that_cannot_be_written_denies_for_now(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise StateError("registry.db: no space left on the disk")

    token = relay.invite("home")
    router = Router(relay, StaticKey.generate())
    with monkeypatch.context() as patched:
        patched.setattr(relay.registry, "redeem", full)
        with pytest.raises(LinkDenied) as caught:
            await router.attach(token=token)
    assert (caught.value.code, caught.value.retry_after) == (DenialCode.BUSY, REGISTRY_RETRY)
    assert told(log, "registry-failed")[0]["reason"] == "registry.db: no space left on the disk"
    await router.attach(token=token)


async def test_a_registry_that_cannot_be_read_denies_for_now(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, here = relay.enrol("home"), relay.enrol("here")
    await here.attach()

    def failing(*_: object) -> None:
        raise StateError("the disk fails")

    with monkeypatch.context() as patched:
        patched.setattr(relay.registry, "agent_by_key", failing)
        with pytest.raises(LinkDenied) as caught:
            await router.attach()
    assert caught.value.code == DenialCode.BUSY
    await router.attach()
    assert not here.ended


class SlowDisk:
    """Holds `redeem` back, before or after it has done its work."""

    def __init__(self, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done, self.go_on = threading.Event(), threading.Event()
        real: Callable[[bytes, bytes, float], EnrolledAgent] = relay.registry.redeem

        def redeem(token: bytes, key: bytes, now: float) -> EnrolledAgent:
            agent = real(token, key, now)
            self.done.set()
            self.go_on.wait(10)
            return agent

        monkeypatch.setattr(relay.registry, "redeem", redeem)


async def test_an_agent_revoked_while_its_token_is_redeemed_does_not_get_in(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(relay, monkeypatch)
    router = Router(relay, StaticKey.generate())
    token = relay.invite("home")

    async def attach() -> None:
        with pytest.raises(LinkDenied) as caught:
            await router.attach(token=token)
        assert caught.value.code == DenialCode.REVOKED

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        await until(disk.done.is_set)
        relay.registry.revoke("home", 0.0)
        relay.agents.refresh()
        disk.go_on.set()
    assert not relay.agents.overview()


async def test_a_disk_that_hangs_delays_neither_others_nor_the_end(
    tmp_path: Path, mock_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    async with running(tmp_path) as relay:
        here = relay.enrol("here")
        disk = SlowDisk(relay, monkeypatch)
        router = Router(relay, StaticKey.generate())

        async def attach() -> None:
            with suppress(LinkLost):
                await router.attach(token=token)

        token = relay.invite("home")
        relay.nursery.start_soon(attach)
        await until(disk.done.is_set)
        await here.attach()
    assert time.monotonic() - began < 5.0
    disk.go_on.set()


async def test_cancelled_in_the_middle_of_a_handshake_the_place_is_free(relay: Relay) -> None:
    at_agent, accepted = tcp_pair()
    limit = relay.handshakes._half_open
    scope = trio.CancelScope()
    caller = limit.enter("203.0.113.9", 0.0, scope.cancel)
    assert caller is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.handshakes._greet, accepted, ("203.0.113.9", 1), caller, scope)
        await send_all(at_agent, first_flight(relay))
        await receive_exactly(at_agent, 2)
        nursery.cancel_scope.cancel()
    assert len(limit) == 0
    assert accepted.fileno() < 0
    at_agent.close()


# A fleet

FLEET = 2000


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Both ends of each link are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 2 * FLEET + 500, f"this test needs more descriptors than {hard}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
async def test_2000_agents_behind_one_address_are_here_at_once(
    relay: Relay, mock_clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    """As time stands still, their address has no more attempts than the 64 that it begins with."""
    log.set_level(logging.ERROR, logger="relay_server")
    fleet = [Router(relay, StaticKey.generate()) for _ in range(FLEET)]
    with closing(sqlite3.connect(relay.registry._path)) as db, db:
        db.executemany(
            "INSERT INTO agents (name, public_key, created, enrolled) VALUES (?, ?, 0, 0)",
            [(f"agent-{number}", one.key.public) for number, one in enumerate(fleet)],
        )
    # Some more at once than may be half-open: those are turned away and come again.
    dialling = trio.CapacityLimiter(relay.config.half_open_per_source + 4)

    async def come(router: Router) -> None:
        async with dialling:
            while router.link is None:
                with suppress(LinkLost):
                    await router.attach(silent=True)

    async with trio.open_nursery() as nursery:
        for router in fleet:
            nursery.start_soon(come, router)
    await until(lambda: sum(one.ownership.attached for one in relay.agents.present) == FLEET)
    assert relay.context.counters.handshakes_failed.keys() == {
        HandshakeFailure.TOO_MANY_FROM_SOURCE
    }
    assert not any(one.link.over for one in fleet if one.link is not None)


# Our key is another one


async def test_who_comes_under_the_current_key_has_followed(
    relay: Relay, log: pytest.LogCaptureFixture
) -> None:
    router = relay.enrol("home")
    await router.attach()  # nothing to follow to
    router.relay_key = relay.rotate()
    await router.resume()
    await quiet()
    assert relay.registry.behind(relay.key.public) == ["home"]
    router.relay_key = None
    for _ in range(2):
        await router.resume()
        await until(lambda: relay.registry.behind(relay.key.public) == [])
    await until(lambda: told(log, "agent-followed-key"))
    await quiet()
    assert told(log, "agent-followed-key") == [{"agent": "home"}]


async def test_that_it_cannot_be_noted_hurts_nobody(
    relay: Relay, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = relay.enrol("home")
    relay.rotate()

    def failing(*_: object) -> None:
        raise StateError("the disk fails")

    monkeypatch.setattr(relay.registry, "follow", failing)
    await router.attach()
    await until(lambda: told(log, "registry-failed"))
    assert relay.registry.behind(relay.key.public) == ["home"]
    monkeypatch.undo()
    await router.resume()
    await until(lambda: relay.registry.behind(relay.key.public) == [])


async def test_a_key_that_is_retired_gets_no_byte(relay: Relay) -> None:
    router = relay.enrol("home")
    router.relay_key = relay.rotate()
    relay.keys.former = ()
    with pytest.raises(NoAnswer):
        await router.attach()


async def test_other_bounds_hold_for_callers_from_then_on(relay: Relay) -> None:
    relay.context.reconfigure(replace(relay.config, half_open_per_source=1))
    with await idle_caller(relay):
        assert await answer_to(caller_of(relay.port)) == b""
        assert half_open(relay) == 1
