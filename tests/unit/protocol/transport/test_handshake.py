from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest
import trio

from protocol.errors import DenialCode, LinkDenied, LinkLost, RemoteProtocolError
from protocol.transport import handshake
from protocol.transport.handshake import Arrival, initiate, respond
from protocol.transport.sockets import receive_exactly, send_all
from protocol.wire.hello import MAX_HELLO, VERSION, Denial, Hello, Limits, Welcome, encode_preface
from protocol.wire.noise import Handshake, StaticKey, Suite
from tests.support.cancellation import cancelled_at
from tests.support.ends import LIMITS
from tests.support.sockets import receive_to_end, tcp_pair
from tests.support.waiting import LIMIT

RELAY = StaticKey.generate()
AGENT = StaticKey.generate()
HELLO = Hello(instance=bytes(16), epoch=1, software="test", features=(), limits=LIMITS)


async def relay_side(sock: socket.socket, results: list[object]) -> None:
    """`respond` as the relay uses it; closes without a word on any fault."""
    with sock:
        try:
            results.append(
                await respond(sock, statics=[RELAY], verified=lambda: results.append("verified"))
            )
        except (RemoteProtocolError, EOFError, OSError) as exc:
            results.append(exc)


async def greet(sent: bytes) -> tuple[bytes, list[object]]:
    """What the relay answers to `sent` followed by the end of file."""
    caller, accepted = tcp_pair()
    results: list[object] = []
    with caller, trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay_side, accepted, results)
            await send_all(caller, sent)
            caller.shutdown(socket.SHUT_WR)
            try:
                answer = await receive_to_end(caller)
            except ConnectionResetError:
                answer = b""
    return answer, results


def opening(suite: Suite = Suite.AESGCM, version: int = VERSION) -> tuple[bytes, Handshake]:
    preface = encode_preface(suite, version)
    noise = Handshake(
        suite=suite, prologue=preface, initiator=True, static=AGENT, remote_static=RELAY.public
    )
    first = noise.write_message()
    return preface + len(first).to_bytes(2, "big") + first, noise


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"S",
        b"GET / HTTP/1.1\r\nHost: example.net\r\n\r\n",
        b"SSH-2.0-scanner\r\n",
        bytes(200),
        b"\xff" * 200,
        encode_preface(Suite.AESGCM),
        encode_preface(Suite.AESGCM) + b"\x00\x00",
        encode_preface(Suite.AESGCM) + b"\xff\xff" + bytes(100),
        encode_preface(Suite.AESGCM) + b"\x00\x30" + bytes(48),
        encode_preface(Suite.AESGCM) + b"\x00\x30" + b"\x09" * 48,
        b"SRLY\x01\x07" + b"\x00\x30" + bytes(48),
    ],
)
async def test_a_caller_without_the_relays_key_gets_not_one_byte(garbage: bytes) -> None:
    answer, results = await greet(garbage)
    assert answer == b""
    assert len(results) == 1
    assert isinstance(results[0], RemoteProtocolError | EOFError)


async def test_every_cut_of_the_first_flight_gets_not_one_byte() -> None:
    flight, _ = opening()
    for length in range(len(flight)):
        answer, results = await greet(flight[:length])
        assert answer == b""
        assert isinstance(results[0], EOFError)


async def test_every_changed_byte_of_the_first_flight_gets_not_one_byte() -> None:
    flight, _ = opening()
    for index in range(len(flight)):
        changed = bytearray(flight)
        changed[index] ^= 0x01
        answer, results = await greet(bytes(changed))
        if index == 4:  # the version is for the relay to judge, yet bound into the handshake
            assert isinstance(results[0], RemoteProtocolError)
        assert answer == b""
        assert "verified" not in results


async def meet(
    *,
    relay: StaticKey = RELAY,
    statics: Sequence[StaticKey] = (RELAY,),
    answer: Denial | None = None,
    suite: Suite = Suite.AESGCM,
) -> Arrival:
    """A whole handshake in which the relay denies; returns what the relay saw."""
    caller, accepted = tcp_pair()
    arrivals: list[Arrival] = []

    async def relay_end() -> None:
        with accepted:
            arrival = await respond(accepted, statics=statics, verified=lambda: None)
            arrivals.append(arrival)
            if answer is not None:
                await arrival.deny(answer)

    with caller, trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay_end)
            with pytest.raises(LinkDenied if answer else LinkLost):
                await initiate(
                    caller,
                    suite=suite,
                    static=AGENT,
                    relay_key=relay.public,
                    hello=lambda: HELLO,
                )
    return arrivals[0]


@pytest.mark.parametrize("suite", list(Suite))
async def test_the_relay_learns_the_agents_key_and_hello(suite: Suite) -> None:
    denial = Denial(code=DenialCode.BUSY, reason="later", retry_after=3.0)
    arrival = await meet(suite=suite, answer=denial)
    assert arrival.agent_key == AGENT.public
    assert arrival.hello == HELLO


@pytest.mark.parametrize("place", range(3))
async def test_a_relay_answers_under_whichever_of_its_keys_the_agent_knows(place: int) -> None:
    statics = [StaticKey.generate() for _ in range(3)]
    statics[place] = RELAY
    arrival = await meet(statics=statics)
    assert arrival.relay_key == RELAY.public
    assert arrival.agent_key == AGENT.public


async def test_a_relay_that_ends_without_an_answer_is_a_lost_link() -> None:
    assert (await meet()).hello == HELLO


async def test_another_relays_key_is_told_apart_from_another_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results: list[object] = []

    async def attempt(expected: bytes) -> str:
        caller, accepted = tcp_pair()
        with caller, trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay_side, accepted, results)
                with pytest.raises((LinkLost, LinkDenied)) as caught:
                    await initiate(
                        caller,
                        suite=Suite.AESGCM,
                        static=AGENT,
                        relay_key=expected,
                        hello=lambda: HELLO,
                    )
        return str(caught.value)

    assert "not the relay whose key we hold" in await attempt(StaticKey.generate().public)
    monkeypatch.setattr(handshake, "encode_preface", lambda suite: encode_preface(suite, 2))
    assert await attempt(RELAY.public) == "this relay speaks protocol version 1, the agent 2"


async def test_a_replayed_handshake_does_not_reach_message_3() -> None:
    """A listener on the wire replays the agent's bytes: message 2 is fresh, so 3 cannot verify."""
    caller, accepted = tcp_pair()
    results: list[object] = []
    flight, noise = opening()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay_side, accepted, results)
        await send_all(caller, flight)
        length = int.from_bytes(await receive_exactly(caller, 2), "big")
        noise.read_message(await receive_exactly(caller, length))
        third = noise.write_message(HELLO.encode())
        third = len(third).to_bytes(2, "big") + third
        await send_all(caller, third)
    caller.close()
    assert isinstance(results[-1], Arrival)
    _, replayed = await greet(flight + third)
    assert replayed[0] == "verified"
    assert isinstance(replayed[1], RemoteProtocolError)


async def test_a_hello_beyond_the_cap_is_not_even_read() -> None:
    flight, _ = opening()
    limit = MAX_HELLO - len(flight) - 2
    for length, message in ((limit, "authentication failed"), (limit + 1, "handshake message of")):
        third = length.to_bytes(2, "big") + bytes(length)
        _, results = await greet(flight + third)
        assert message in str(results[-1])


async def test_something_else_than_a_welcome_is_a_lost_link() -> None:
    caller, accepted = tcp_pair()

    async def relay_end() -> None:
        with accepted:
            arrival = await respond(accepted, statics=[RELAY], verified=lambda: None)
            await arrival.link.send_frame(b"\x43\x00\x00\x00\x00" + bytes(8))

    with caller, trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay_end)
            with pytest.raises(LinkLost, match="instead of a welcome"):
                await initiate(
                    caller,
                    suite=Suite.AESGCM,
                    static=AGENT,
                    relay_key=RELAY.public,
                    hello=lambda: HELLO,
                )


def test_limits_of_the_hello_are_what_the_agent_declares() -> None:
    assert HELLO.limits == Limits(streams=64, stream_window=65536, session_window=1048576)


async def test_a_socket_that_takes_no_options_is_a_lost_link() -> None:
    """Some systems refuse them once the other side has reset."""
    caller, accepted = tcp_pair()
    accepted.close()
    caller.close()
    with pytest.raises(LinkLost, match="the handshake failed"):
        await initiate(
            caller, suite=Suite.AESGCM, static=AGENT, relay_key=RELAY.public, hello=lambda: HELLO
        )


async def test_a_relays_key_that_is_no_key_is_a_lost_link() -> None:
    """An invitation can say anything; a low-order point would agree on zeros with everybody."""
    caller, accepted = tcp_pair()
    with caller, accepted, pytest.raises(LinkLost, match="low-order point"):
        await initiate(
            caller, suite=Suite.AESGCM, static=AGENT, relay_key=bytes(32), hello=lambda: HELLO
        )


async def test_cancelled_at_any_step_either_side_is_cancelled_and_no_more() -> None:
    """Each await of both: the socket stays its owner's, and nothing else comes out."""
    for who in ("agent", "relay"):
        step, cancelled = 0, True
        while cancelled:
            step += 1
            caller, accepted = tcp_pair()
            results: list[object] = []
            scopes = {"agent": trio.CancelScope(), "relay": trio.CancelScope()}

            async def agent_end() -> None:
                with caller, scopes["agent"]:  # noqa: B023 - in this round
                    link, _ = await initiate(
                        caller,  # noqa: B023 - in this round
                        suite=Suite.AESGCM,
                        static=AGENT,
                        relay_key=RELAY.public,
                        hello=lambda: HELLO,
                    )
                    results.append(link)  # noqa: B023 - in this round

            async def relay_end() -> None:
                with accepted, scopes["relay"]:  # noqa: B023 - in this round
                    arrival = await respond(
                        accepted,  # noqa: B023 - in this round
                        statics=[RELAY],
                        verified=lambda: None,
                    )
                    await arrival.welcome(WELCOME)

            with trio.fail_after(LIMIT):
                try:
                    with cancelled_at(step, scopes[who]):
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(agent_end)
                            nursery.start_soon(relay_end)
                except* (LinkLost, EOFError, OSError):
                    assert not results
            cancelled = scopes[who].cancel_called and not results
            assert caller.fileno() == accepted.fileno() == -1
        assert step > 3


WELCOME = Welcome(
    session=bytes(16),
    resumed=False,
    received=0,
    limits=LIMITS,
    name="home",
    ports=(11111,),
    features=(),
    software="test",
)
