from __future__ import annotations

import pytest

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.session.events import (
    PublicationConfirmed,
    PublicationRefused,
    PublicationWithdrawn,
    PublishRequested,
)
from protocol.session.publications import MAX_LIVE, Publications
from protocol.wire.frame import Publish, Published, Refused, Unpublish

ID, SERVICE, PORT = b"\xa2id", b"\xa7service", b"\xa4port"
CODE, REASON = b"\xa4code", b"\xa6reason"


def number(value: int) -> bytes:
    return b"\xce" + value.to_bytes(4, "big")


def publish(publication: int) -> memoryview:
    return memoryview(b"\x83" + ID + number(publication) + SERVICE + b"\xa3ssh" + PORT + number(22))


def published(publication: int) -> memoryview:
    return memoryview(b"\x82" + ID + number(publication) + PORT + number(22))


def refused(publication: int) -> memoryview:
    return memoryview(b"\x83" + ID + number(publication) + CODE + b"\x01" + REASON + b"\xa4busy")


def unpublish(publication: int) -> memoryview:
    return memoryview(b"\x81" + ID + number(publication))


def test_ids_at_the_agent_are_fresh_and_rising() -> None:
    agent = Publications()
    assert agent.add("ssh", 22) == Publish(publication=1, service="ssh", port=22)
    assert agent.withdraw(1) == Unpublish(publication=1)
    assert agent.add("ssh", 22).publication == 2
    assert agent.is_live(2)
    assert not agent.is_live(1)


@pytest.mark.parametrize("publication", [0, 2, -1])
def test_what_never_was_is_an_error_of_the_peer(publication: int) -> None:
    agent = Publications()
    agent.add("ssh", 22)
    with pytest.raises(RemoteProtocolError):
        agent.is_live(publication)


def test_answers_reach_the_agent() -> None:
    agent = Publications()
    agent.add("ssh", 22)
    confirmed = PublicationConfirmed(Published(publication=1, port=22))
    assert agent.on_published(published(1)) == confirmed
    answer = PublicationRefused(Refused(publication=1, code=1, reason="busy"))
    assert agent.on_refused(refused(1)) == answer
    assert agent.on_published(published(1)) == confirmed, "a busy port became free"


def test_answers_that_crossed_a_withdrawal_are_dropped() -> None:
    agent = Publications()
    agent.add("ssh", 22)
    agent.withdraw(1)
    assert agent.on_published(published(1)) is None
    assert agent.on_refused(refused(1)) is None


def test_answers_to_nothing_are_an_error_of_the_peer() -> None:
    agent = Publications()
    with pytest.raises(RemoteProtocolError):
        agent.on_published(published(1))
    with pytest.raises(RemoteProtocolError):
        agent.on_refused(refused(1))


def test_withdrawing_twice_is_a_bug_of_ours() -> None:
    agent = Publications()
    agent.add("ssh", 22)
    agent.withdraw(1)
    with pytest.raises(LocalProtocolError):
        agent.withdraw(1)


def test_requests_reach_the_relay() -> None:
    relay = Publications()
    request = PublishRequested(Publish(publication=3, service="ssh", port=22))
    assert relay.on_publish(publish(3)) == request
    assert relay.is_live(3)
    assert relay.on_unpublish(unpublish(3)) == PublicationWithdrawn(3)
    assert not relay.is_live(3)


@pytest.mark.parametrize("publication", [2, 3])
def test_an_id_that_does_not_rise_is_an_error_of_the_peer(publication: int) -> None:
    relay = Publications()
    relay.on_publish(publish(3))
    with pytest.raises(RemoteProtocolError, match="not fresh"):
        relay.on_publish(publish(publication))


def test_withdrawing_twice_is_an_error_of_the_peer() -> None:
    relay = Publications()
    relay.on_publish(publish(3))
    relay.on_unpublish(unpublish(3))
    with pytest.raises(RemoteProtocolError, match="twice"):
        relay.on_unpublish(unpublish(3))


def test_withdrawing_what_never_was_is_an_error_of_the_peer() -> None:
    relay = Publications()
    with pytest.raises(RemoteProtocolError, match="never made"):
        relay.on_unpublish(unpublish(1))


def test_a_peer_cannot_make_the_relay_remember_without_bound() -> None:
    relay = Publications()
    for publication in range(1, MAX_LIVE + 1):
        relay.on_publish(publish(publication))
    with pytest.raises(RemoteProtocolError, match="more than"):
        relay.on_publish(publish(MAX_LIVE + 1))
    relay.on_unpublish(unpublish(5))
    relay.on_publish(publish(MAX_LIVE + 1))


def test_the_agent_keeps_the_same_bound() -> None:
    agent = Publications()
    for _ in range(MAX_LIVE):
        agent.add("ssh", 22)
    with pytest.raises(LocalProtocolError):
        agent.add("ssh", 22)
    agent.withdraw(1)
    agent.add("ssh", 22)
