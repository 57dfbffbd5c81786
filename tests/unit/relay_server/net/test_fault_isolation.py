"""A bug that one agent, visitor or caller meets is nobody else's. Here it is put in on purpose."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from protocol.errors import LinkLost, LocalProtocolError, SessionLost
from protocol.session.session import Session
from protocol.transport import link as link_module
from relay_server.agents import handshakes
from relay_server.guard.guard import Guard
from relay_server.net.fault_isolation import contained
from tests.support.log_records import told
from tests.support.ports import free_port
from tests.support.relay import Relay, come, echoes
from tests.support.sockets import was_reset
from tests.support.trio_waiting import until


class Neighbours:
    """An agent that will meet a bug, and another one; both with a visitor."""

    def __init__(self, relay: Relay) -> None:
        self.ports = free_port(), free_port()
        self.unlucky = relay.enrol("unlucky", self.ports[0])
        self.other = relay.enrol("other", self.ports[1])
        self._relay = relay

    async def come(self) -> None:
        for router, port in zip((self.unlucky, self.other), self.ports, strict=True):
            await router.attach()
            await router.serve(port)
        self.visitor, self.target = await self.unlucky.visited(self.ports[0])
        self.undisturbed = await self.other.visited(self.ports[1])

    @property
    def session(self) -> Session:
        endpoint = self._relay.agent(self.unlucky).endpoint
        assert endpoint is not None
        return endpoint.session

    async def assert_only_the_session_is_lost(self) -> None:
        assert await was_reset(self.visitor)
        await until(lambda: self.unlucky.ended)
        assert await echoes(*self.undisturbed, b"undisturbed")
        assert not self.other.ended
        self.undisturbed[0].close()
        # It comes again with a new session, and finds its port.
        again = self.unlucky.again()
        await again.attach()
        await again.serve(self.ports[0])
        visitor, target = await again.visited(self.ports[0])
        assert await echoes(visitor, target, b"as before")
        visitor.close()


@pytest.fixture
async def neighbours(relay: Relay) -> Neighbours:
    both = Neighbours(relay)
    await both.come()
    return both


@pytest.mark.parametrize("bug", [LocalProtocolError("no link is attached"), KeyError(7)])
async def test_what_an_agent_says_and_we_fail_at_ends_its_session(
    relay: Relay,
    neighbours: Neighbours,
    bug: Exception,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    receive, session = link_module._receive, neighbours.session

    def fails(where: Session, *rest: Any) -> object:
        if where is session:
            raise bug
        return receive(where, *rest)

    monkeypatch.setattr(link_module, "_receive", fails)
    neighbours.target.send(b"whatever")
    fault = await relay.faults.take()
    assert vars(fault)["event_fields"] == {"agent": "unlucky"}
    assert fault.exc_info is not None
    assert repr(bug) in repr(fault.exc_info[1])
    await neighbours.assert_only_the_session_is_lost()
    (down,) = [one for one in told(log, "link-down") if one["agent"] == "unlucky"]
    assert down["reason"] == "a fault of the relay, which its log tells of"


async def test_what_a_visitor_says_and_we_fail_at_ends_its_agents_session(
    relay: Relay, neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, session = Session.send, neighbours.session

    def fails(where: Session, *rest: Any, **options: Any) -> object:
        if where is session:
            raise LocalProtocolError("sending 9 bytes with a credit of 8")
        return send(where, *rest, **options)

    monkeypatch.setattr(Session, "send", fails)
    neighbours.visitor.send(b"whatever")
    fault = await relay.faults.take()
    about = {"agent": "unlucky", "service": "ssh", "source": "127.0.0.1"}
    assert vars(fault)["event_fields"] == about
    await neighbours.assert_only_the_session_is_lost()


async def test_a_visitor_who_has_no_stream_yet_is_all_that_is_lost(
    relay: Relay, neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise IndexError("nobody is in line")

    with monkeypatch.context() as patched:
        patched.setattr(Guard, "arrive", fails)
        assert await was_reset(come(relay, neighbours.unlucky, neighbours.ports[0]))
    await relay.faults.take()
    assert await echoes(neighbours.visitor, neighbours.target, b"undisturbed")
    for visitor in (neighbours.visitor, neighbours.undisturbed[0]):
        visitor.close()


async def test_a_half_open_caller_is_all_that_is_lost(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, late = relay.enrol("here"), relay.enrol("late")
    await here.attach()

    async def fails(*_: object, **__: object) -> None:
        raise LocalProtocolError("handshake step 2 is not this one")

    with monkeypatch.context() as patched:
        patched.setattr(handshakes, "respond", fails)
        with pytest.raises(LinkLost):
            await late.attach()
    fault = await relay.faults.take()
    assert vars(fault)["event_fields"] == {"address": "127.0.0.1"}
    assert relay.handshakes.half_open == 0
    await late.attach()
    assert not here.ended


@pytest.mark.parametrize("end", [LinkLost("cut"), SessionLost("expired")])
def test_known_ends_are_no_faults(end: Exception) -> None:
    with pytest.raises(type(end)), contained():
        raise end


async def test_a_fault_beside_a_cancellation_leaves_the_cancellation(
    relay: Relay,
) -> None:
    after = list[str]()

    async def fails() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise LocalProtocolError("no link is attached")

    with trio.CancelScope() as scope, contained(lambda: after.append("told"), agent="home"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            nursery.start_soon(trio.sleep_forever)
            await trio.lowlevel.checkpoint()
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    await relay.faults.take()


def test_an_interrupt_is_nobodys_fault() -> None:
    with pytest.raises(KeyboardInterrupt), contained():
        raise KeyboardInterrupt
