from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from protocol.errors import DenialCode, LinkDenied, LinkLost
from protocol.process.address import HostPort
from protocol.transport.link import Link
from protocol.wire.hello import Hello
from protocol.wire.noise import StaticKey, Suite
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link.attach import ATTACH_TIMEOUT, attach, preferred_suite
from tests.support.cancellation import cancelled_at
from tests.support.ends import LIMITS
from tests.support.ports import free_port
from tests.support.scripted_relay import ScriptedRelay

KEY = StaticKey.generate()
HELLO = Hello(instance=bytes(16), epoch=1, software="test", features=(), limits=LIMITS)


@asynccontextmanager
async def a_relay() -> AsyncIterator[ScriptedRelay]:
    async with trio.open_nursery() as nursery:
        relay = ScriptedRelay(nursery)
        nursery.start_soon(relay.serve)
        yield relay
        nursery.cancel_scope.cancel()


async def attach_to(relay: RelayIdentity) -> Link:
    link, _ = await attach(relay, static=KEY, hello=lambda: HELLO)
    return link


async def test_a_welcome_brings_a_link() -> None:
    async with a_relay() as relay:
        link, welcome = await attach(relay.address, static=KEY, hello=lambda: HELLO)
        assert welcome.name == "home"
        assert link.peername == ("127.0.0.1", relay.port)
        link.close()


async def test_a_link_that_is_closed_is_reset_so_that_nothing_trickles_on() -> None:
    seen: list[type[OSError]] = []

    async with a_relay() as relay:
        over = trio.Event()

        async def watch_the_end(sock: socket.socket) -> None:
            await relay.welcome_and_be_silent(sock)
            await trio.lowlevel.wait_readable(sock.fileno())
            try:
                sock.recv(1)
            except OSError as exc:
                seen.append(type(exc))
            over.set()

        relay.greetings.append(watch_the_end)
        (await attach_to(relay.address)).close()
        await over.wait()
    assert seen == [ConnectionResetError]


async def test_a_denial_says_why() -> None:
    async with a_relay() as relay:
        relay.greetings.append(relay.denying(DenialCode.REVOKED, retry_after=7.0))
        with pytest.raises(LinkDenied) as caught:
            await attach_to(relay.address)
        assert caught.value.code == DenialCode.REVOKED
        assert caught.value.retry_after == 7.0


async def test_no_relay_is_a_lost_link_with_the_dials_reason() -> None:
    port = free_port()
    with pytest.raises(LinkLost, match=f"127.0.0.1:{port}: Connection refused"):
        await attach_to(RelayIdentity(hosts=[HostPort("127.0.0.1", port)], key=KEY.public))


async def test_another_key_than_the_relays_is_no_relay_of_ours() -> None:
    async with a_relay() as relay:
        wrong = RelayIdentity(hosts=relay.address.hosts, key=KEY.public)
        with pytest.raises(LinkLost, match="not the relay whose key we hold"):
            await attach_to(wrong)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00\x30" + bytes(48),
        b"\x00\x00",
        b"\xff\xff" + bytes(65535),
        b"\x00\x30" + bytes(10),  # and the end
    ],
)
async def test_garbage_for_an_answer_is_a_lost_link(answer: bytes) -> None:
    async with a_relay() as relay:

        async def greet(sock: socket.socket) -> None:
            sock.send(answer)
            sock.shutdown(socket.SHUT_WR)
            await trio.lowlevel.wait_readable(sock.fileno())

        relay.greetings.append(greet)
        with pytest.raises(LinkLost):
            await attach_to(relay.address)


@pytest.mark.parametrize("when", ["accepted", "message 1", "message 3"])
async def test_a_reset_at_any_step_is_a_lost_link(when: str) -> None:
    async with a_relay() as relay:

        async def greet(sock: socket.socket) -> None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if when == "message 1":
                await trio.lowlevel.wait_readable(sock.fileno())
            elif when == "message 3":
                await relay.shake(sock)

        relay.greetings.append(greet)
        with pytest.raises(LinkLost):
            await attach_to(relay.address)


async def test_dial_and_handshake_share_one_deadline(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with a_relay() as relay:

        async def say_nothing(sock: socket.socket) -> None:
            await trio.sleep_forever()

        relay.greetings.append(say_nothing)
        began = trio.current_time()
        with pytest.raises(LinkLost, match="no answer to the handshake within 10 s"):
            await attach_to(relay.address)
        assert trio.current_time() - began == pytest.approx(ATTACH_TIMEOUT)


async def test_hello_is_asked_for_only_when_the_relay_has_proved_itself() -> None:
    asked = []

    def hello() -> Hello:
        asked.append(True)
        return HELLO

    async with a_relay() as relay:
        wrong = RelayIdentity(hosts=relay.address.hosts, key=KEY.public)
        with pytest.raises(LinkLost):
            await attach(wrong, static=KEY, hello=hello)
        assert not asked
        link, _ = await attach(relay.address, static=KEY, hello=hello)
        assert asked == [True]
        link.close()


async def test_cancelled_at_any_step_no_socket_is_left() -> None:
    async with a_relay() as relay:
        step, cancelled = 0, True
        while cancelled:
            step += 1
            link = None
            with cancelled_at(step) as scope:
                link = await attach_to(relay.address)
            cancelled = scope.cancelled_caught
            assert cancelled == (link is None)  # a leak would be a ResourceWarning
        assert link is not None
        link.close()
        assert step > 5


@pytest.mark.parametrize(
    ("cpuinfo", "suite"),
    [
        ("processor\t: 0\nflags\t\t: fpu vme aes avx\n", Suite.AESGCM),
        ("processor\t: 0\nflags\t\t: fpu vme avx\n", Suite.CHACHAPOLY),
        ("processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1\n", Suite.AESGCM),
        ("model name\t: ARMv7\nFeatures\t: half thumb neon vfpv4\n", Suite.CHACHAPOLY),
        (
            "system type\t\t: MediaTek MT7621\nASEs implemented\t: mips16 dsp mt aes\n",
            Suite.CHACHAPOLY,
        ),
        ("flags\t\t: vaes\n", Suite.CHACHAPOLY),  # a word, not a part of one
        ("flags : \xe4 aes\n", Suite.AESGCM),
        ("", Suite.CHACHAPOLY),
    ],
)
def test_the_cipher_is_what_the_processor_is_fast_at(
    tmp_path: Path, cpuinfo: str, suite: Suite
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo, "utf-8")
    assert preferred_suite(path) is suite


def test_without_a_word_about_the_processor_it_is_chacha(tmp_path: Path) -> None:
    assert preferred_suite(tmp_path / "none") is Suite.CHACHAPOLY
