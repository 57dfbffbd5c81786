from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from protocol.errors import DenialCode, LinkDenied, LinkLost, NoAnswer
from protocol.process.address import HostPort
from protocol.process.state import StateError
from protocol.wire.hello import Denial, Hello, Welcome
from protocol.wire.noise import StaticKey
from relay_agent.identity.agent_keys import AgentKeys
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link.relay_dialer import RelayDialer
from tests.support.ends import LIMITS
from tests.support.log_records import events
from tests.support.ports import free_port
from tests.support.scripted_relay import ScriptedRelay

MINE = StaticKey.generate()
HELLO = Hello(instance=bytes(16), epoch=1, software="test", features=(), limits=LIMITS)
OLD, NEW, NEWER = (StaticKey.generate() for _ in range(3))


class Disk:
    """What is saved; a full one when `full`."""

    def __init__(self) -> None:
        self.saved: list[RelayIdentity] = []
        self.own: list[AgentKeys] = []
        self.full = False

    def save_keys(self, own: AgentKeys) -> None:
        if self.full:
            raise StateError(os.strerror(errno.ENOSPC))
        self.own.append(own)

    def save_relay(self, relay: RelayIdentity) -> None:
        if self.full:
            raise StateError(os.strerror(errno.ENOSPC))
        self.saved.append(relay)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@asynccontextmanager
async def a_relay(*held: StaticKey) -> AsyncIterator[ScriptedRelay]:
    async with trio.open_nursery() as nursery:
        relay = ScriptedRelay(nursery)
        relay.keys = list(held)
        nursery.start_soon(relay.serve)
        yield relay
        nursery.cancel_scope.cancel()


def reasons(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [each["reason"] for each in events(caplog, "relay-key-not-saved")]


def known(
    relay: ScriptedRelay, key: StaticKey, successor: StaticKey | None = None
) -> RelayIdentity:
    public = None if successor is None else successor.public
    return replace(relay.address, key=key.public, successor=public)


async def attach(dialer: RelayDialer) -> Welcome:
    link, welcome = await dialer.connect(lambda: HELLO)
    link.close()
    return welcome


async def test_told_of_a_successor_it_is_saved_before_it_is_used(disk: Disk) -> None:
    async with a_relay(NEW, OLD) as relay:
        dialer = RelayDialer(
            AgentKeys(MINE), known(relay, OLD), save_relay=disk.save_relay, save_keys=disk.save_keys
        )
        welcome = await attach(dialer)
        assert welcome.successor == NEW.public
        assert dialer.learn_successor(welcome)
        assert disk.saved == [known(relay, OLD, NEW)]
        assert (await attach(dialer)).successor is None
        # Once it has worked the old one is forgotten.
        assert disk.saved[1:] == [known(relay, NEW)]
        assert dialer.relay == known(relay, NEW)
        assert relay.shown == [OLD.public, NEW.public]


async def test_it_never_goes_back_once_the_new_key_has_worked(disk: Disk) -> None:
    async with a_relay(NEW) as relay:
        dialer = RelayDialer(
            AgentKeys(MINE),
            known(relay, OLD, NEW),
            save_relay=disk.save_relay,
            save_keys=disk.save_keys,
        )
        await attach(dialer)
        relay.keys = [OLD]
        with pytest.raises(NoAnswer):
            await attach(dialer)
        assert relay.callers == 2


async def test_not_even_if_that_cannot_be_saved(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_relay(NEW) as relay:
        dialer = RelayDialer(
            AgentKeys(MINE),
            known(relay, OLD, NEW),
            save_relay=disk.save_relay,
            save_keys=disk.save_keys,
        )
        disk.full = True
        await attach(dialer)
        assert reasons(caplog) == ["No space left on device"]
        relay.keys = [OLD]
        with pytest.raises(NoAnswer):
            await attach(dialer)
        # The next link tries to save it once more, and no later one.
        relay.keys, disk.full = [NEW], False
        await attach(dialer)
        await attach(dialer)
        assert disk.saved == [known(relay, NEW)]
        # The next process has both still, and tries the new one first.
        relay.keys = [NEW, OLD]
        assert (
            await attach(
                RelayDialer(
                    AgentKeys(MINE),
                    known(relay, OLD, NEW),
                    save_relay=disk.save_relay,
                    save_keys=disk.save_keys,
                )
            )
        ) is not None
        assert relay.shown[-1] == NEW.public


async def test_until_it_has_worked_the_old_key_is_good_as_well(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """The relay was put back to a state from before the rotation."""
    caplog.set_level("DEBUG")
    async with a_relay(OLD) as relay:
        dialer = RelayDialer(
            AgentKeys(MINE),
            known(relay, OLD, NEW),
            save_relay=disk.save_relay,
            save_keys=disk.save_keys,
        )
        assert (await attach(dialer)).successor is None
        assert relay.shown == [OLD.public]
        assert dialer.relay == known(relay, OLD, NEW)
        assert disk.saved == []
        await attach(dialer)
        levels = [each["level"] for each in events(caplog, "relay-key-unanswered")]
        assert levels == ["WARNING", "DEBUG"]


async def test_what_cannot_be_saved_is_not_used(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_relay(NEW, OLD) as relay:
        dialer = RelayDialer(
            AgentKeys(MINE), known(relay, OLD), save_relay=disk.save_relay, save_keys=disk.save_keys
        )
        disk.full = True
        assert not dialer.learn_successor(await attach(dialer))
        assert reasons(caplog) == ["No space left on device"]
        await attach(dialer)
        assert relay.shown == [OLD.public, OLD.public]
        disk.full = False  # and the next link tells it again
        assert dialer.learn_successor(await attach(dialer))


async def test_what_is_known_is_no_news(disk: Disk) -> None:
    async with a_relay(NEW, OLD) as relay:
        dialer = RelayDialer(
            AgentKeys(MINE),
            known(relay, OLD, NEW),
            save_relay=disk.save_relay,
            save_keys=disk.save_keys,
        )
        told = relay.welcome(bytes(16), resumed=False)
        assert not dialer.learn_successor(told)
        assert not dialer.learn_successor(replace(told, successor=OLD.public))
        assert not dialer.learn_successor(replace(told, successor=NEW.public))
        # The relay has rotated again meanwhile, and does not hold what it told of before.
        assert dialer.learn_successor(replace(told, successor=NEWER.public))
        assert disk.saved == [known(relay, OLD, NEWER)]


async def test_a_relay_that_rotated_twice_is_followed_twice(disk: Disk) -> None:
    async with a_relay(NEWER, NEW, OLD) as relay:
        dialer = RelayDialer(
            AgentKeys(MINE),
            known(relay, OLD, NEW),
            save_relay=disk.save_relay,
            save_keys=disk.save_keys,
        )
        assert dialer.learn_successor(await attach(dialer))
        assert dialer.relay == known(relay, NEW, NEWER)
        await attach(dialer)
        assert dialer.relay == known(relay, NEWER)
        assert disk.saved == [known(relay, NEW), known(relay, NEW, NEWER), known(relay, NEWER)]


async def test_what_else_goes_wrong_under_the_new_key_is_no_reason_to_try_the_old(
    disk: Disk,
) -> None:
    async with a_relay(NEW, OLD) as relay:

        async def deny(sock: socket.socket) -> None:
            arrival = await relay.shake(sock)
            await arrival.deny(Denial(code=6, reason="busy"))

        async def cut(sock: socket.socket) -> None:
            await relay.shake(sock)

        dialer = RelayDialer(
            AgentKeys(MINE),
            known(relay, OLD, NEW),
            save_relay=disk.save_relay,
            save_keys=disk.save_keys,
        )
        failures: list[tuple[Callable[..., Any], type[Exception]]] = [
            (deny, LinkDenied),
            (cut, LinkLost),
        ]
        for greeting, failure in failures:
            relay.greetings.append(greeting)
            with pytest.raises(failure):
                await attach(dialer)
        assert relay.shown == [NEW.public, NEW.public]
        assert dialer.relay.successor == NEW.public


# Keys of our own

FORMER = StaticKey.generate()


@asynccontextmanager
async def a_registry(*known_keys: bytes, takes: bool = True) -> AsyncIterator[ScriptedRelay]:
    """A relay that takes these dialer, and a successor for one of them; each comer is in `came`."""
    registered, revoked = list(known_keys), list[bytes]()
    async with a_relay(OLD) as relay:

        async def greet(sock: socket.socket) -> None:
            arrival = await relay.shake(sock)
            key, successor = arrival.agent_key, arrival.hello.successor
            if key not in registered:
                code = DenialCode.REVOKED if key in revoked else DenialCode.UNKNOWN_AGENT
                await arrival.deny(Denial(code=code, reason=code.name))
                return
            welcome = relay.welcome(bytes(16), resumed=False)
            if successor is not None and takes:
                registered[:], revoked[:] = [successor], [key]
                welcome = replace(welcome, agent_key=successor)
            await arrival.welcome(welcome)

        relay.greetings = [greet] * 20
        yield relay


def dialer_with(relay: ScriptedRelay, own: AgentKeys, disk: Disk) -> RelayDialer:
    return RelayDialer(own, known(relay, OLD), save_relay=disk.save_relay, save_keys=disk.save_keys)


async def shown(relay: ScriptedRelay, dialer: RelayDialer) -> list[bool]:
    """For each attempt to attach once, whether the former key vouched."""
    relay.hellos.clear()
    await attach(dialer)
    return [hello.successor is not None for hello in relay.hellos]


TOLD = AgentKeys(MINE, (FORMER,), accepted=True)
NOT_TOLD = AgentKeys(MINE, (FORMER,), accepted=False)


async def test_the_former_key_vouches_for_the_newest(disk: Disk) -> None:
    async with a_registry(FORMER.public) as relay:
        dialer = dialer_with(relay, NOT_TOLD, disk)
        assert await shown(relay, dialer) == [True]
        assert relay.hellos[0].successor == MINE.public
        assert disk.own == [TOLD]
        # From then on the newest is the one that works.
        assert await shown(relay, dialer) == [False]
        assert disk.own == [TOLD]


async def test_an_answer_that_got_lost_is_found_out(disk: Disk) -> None:
    async with a_registry(FORMER.public) as relay:
        await attach(dialer_with(relay, NOT_TOLD, disk))
        disk.own.clear()
        dialer = dialer_with(relay, NOT_TOLD, disk)
        assert await shown(relay, dialer) == [True, False]
        assert disk.own == [TOLD]
        assert await shown(relay, dialer) == [False]


async def test_a_relay_that_was_put_back_is_told_once_more(disk: Disk) -> None:
    async with a_registry(FORMER.public) as relay:
        dialer = dialer_with(relay, TOLD, disk)
        assert await shown(relay, dialer) == [False, True]
        assert await shown(relay, dialer) == [False]
        assert not disk.own


@pytest.mark.parametrize("accepted", [True, False])
async def test_a_relay_that_was_put_back_further_is_told_by_an_older_key(
    disk: Disk, accepted: bool
) -> None:
    older = StaticKey.generate()
    async with a_registry(older.public) as relay:
        own = AgentKeys(MINE, (FORMER, older), accepted=accepted)
        dialer = dialer_with(relay, own, disk)
        assert await shown(relay, dialer) == (
            [False, True, True] if accepted else [True, False, True]
        )
        assert await shown(relay, dialer) == [False]
        assert disk.own == ([] if accepted else [replace(own, accepted=True)])


async def test_a_relay_without_the_feature_keeps_the_former_key(disk: Disk) -> None:
    async with a_registry(FORMER.public, takes=False) as relay:
        dialer = dialer_with(relay, NOT_TOLD, disk)
        for _ in range(2):
            assert await shown(relay, dialer) == [True]
        assert not disk.own


async def test_what_cannot_be_noted_is_found_out_again(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_registry(FORMER.public) as relay:
        disk.full = True
        dialer = dialer_with(relay, NOT_TOLD, disk)
        await attach(dialer)
        assert events(caplog, "agent-key-not-saved")
        assert dialer.agent_keys == TOLD
        assert await shown(relay, dialer) == [False]


async def test_both_revoked(disk: Disk) -> None:
    async with a_registry() as relay:
        for own in (TOLD, NOT_TOLD):
            with pytest.raises(LinkDenied, match="UNKNOWN_AGENT"):
                await attach(dialer_with(relay, own, disk))
        assert not disk.own


async def test_other_denials_are_the_answer(disk: Disk) -> None:
    async with a_relay(OLD) as relay:
        for own in (TOLD, NOT_TOLD):
            relay.greetings = [relay.denying(DenialCode.BUSY)]
            with pytest.raises(LinkDenied):
                await attach(dialer_with(relay, own, disk))
        assert relay.callers == 2


async def test_rotated_meanwhile_nothing_is_noted_of_the_newer_one(disk: Disk) -> None:
    async with a_registry(FORMER.public) as relay:
        dialer = dialer_with(relay, NOT_TOLD, disk)
        newer = AgentKeys(StaticKey.generate(), (MINE,), accepted=False)

        def hello() -> Hello:
            dialer.agent_keys = newer
            return HELLO

        link, _ = await dialer.connect(hello)
        link.close()
        assert (dialer.agent_keys, disk.own) == (newer, [])


# Where the relay is


def dialer_of(relay: RelayIdentity, disk: Disk) -> RelayDialer:
    return RelayDialer(AgentKeys(MINE), relay, save_relay=disk.save_relay, save_keys=disk.save_keys)


async def welcome_with(dialer: RelayDialer, *hosts: str) -> None:
    dialer.learn_hosts(replace(await attach(dialer), hosts=hosts))


async def test_what_the_relay_tells_of_itself_is_saved_once(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with a_relay(OLD) as relay:
        dialer = dialer_of(known(relay, OLD), disk)
        for _ in range(2):
            await welcome_with(dialer, "new.example.net:7022", "[2001:db8::9]:443")
        further = (HostPort("new.example.net", 7022), HostPort("2001:db8::9", 443))
        assert dialer.relay.further == further
        assert [one.further for one in disk.saved] == [further]
        assert len(events(caplog, "relay-hosts-told")) == 1
        await welcome_with(dialer)
        assert disk.saved[-1].further == ()


async def test_a_relay_that_tells_nothing_or_nonsense_changes_nothing(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_relay(OLD) as relay:
        elsewhere = replace(known(relay, OLD), further=(HostPort("127.0.0.1", relay.port),))
        dialer = dialer_of(elsewhere, disk)
        welcome = await attach(dialer)
        dialer.learn_hosts(replace(welcome, hosts=None))
        dialer.learn_hosts(replace(welcome, hosts=("a b:1",)))
        assert dialer.relay == elsewhere
        assert not disk.saved
        assert len(events(caplog, "relay-hosts-unusable")) == 1


async def test_what_cannot_be_saved_counts_until_the_end_of_the_process(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.full = True
    async with a_relay(OLD) as relay:
        dialer = dialer_of(known(relay, OLD), disk)
        await welcome_with(dialer, "new.example.net:7022")
        assert dialer.relay.further == (HostPort("new.example.net", 7022),)
        assert len(events(caplog, "relay-hosts-not-saved")) == 1
        assert not reasons(caplog)


def closed_port() -> HostPort:
    return HostPort("127.0.0.1", free_port())


async def test_where_it_answered_last_it_is_sought_first(disk: Disk) -> None:
    async with a_relay(OLD) as before, a_relay(OLD) as after:
        further = (HostPort("127.0.0.1", after.port),)
        dialer = dialer_of(replace(known(before, OLD), further=further), disk)
        await attach(dialer)
        assert (before.callers, after.callers) == (1, 0)
        # Another relay has its address now: it does not hold the key.
        before.keys = [NEWER]
        await attach(dialer)
        assert (before.callers, after.callers) == (2, 1)
        await attach(dialer)
        assert (before.callers, after.callers) == (2, 2)
        # And back.
        before.keys, after.keys = [OLD], [NEWER]
        for _ in range(2):
            await attach(dialer)
        assert (before.callers, after.callers) == (4, 3)


async def test_a_place_that_denies_is_the_relay_and_no_other_is_sought(disk: Disk) -> None:
    async with a_relay(OLD) as before, a_relay(OLD) as after:
        further = (HostPort("127.0.0.1", after.port),)
        dialer = dialer_of(replace(known(before, OLD), further=further), disk)
        before.greetings = [before.denying(99)]
        with pytest.raises(LinkDenied):
            await attach(dialer)
        assert after.callers == 0


async def test_where_nobody_answers_both_places_are_told(disk: Disk) -> None:
    here, there = closed_port(), closed_port()
    relay = RelayIdentity(hosts=[here], key=OLD.public, further=(there,))
    dialer = dialer_of(relay, disk)
    with pytest.raises(LinkLost, match=rf"{here}: Connection refused; {there}: Connection ref"):
        await attach(dialer)


async def test_both_places_are_asked_under_both_keys(disk: Disk) -> None:
    """A relay that rotated its key and moved while we were away."""
    async with a_relay(NEW, OLD) as after:
        relay = RelayIdentity(
            hosts=[closed_port()],
            key=OLD.public,
            successor=NEW.public,
            further=(HostPort("127.0.0.1", after.port),),
        )
        dialer = dialer_of(relay, disk)
        await attach(dialer)
        assert dialer.relay == replace(relay, key=NEW.public, successor=None)
        assert disk.saved == [dialer.relay]
