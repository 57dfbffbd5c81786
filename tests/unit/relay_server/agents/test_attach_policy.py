from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.wire.hello import Hello, Resume
from relay_server.agents.attach_policy import DISPLACED_KEPT, Decision, Ownership
from tests.support.ends import LIMITS

SESSION, OTHER_SESSION = b"s" * 16, b"t" * 16


def process(number: int) -> bytes:
    return bytes([number]) * 16


def hello(number: int, epoch: int, session: bytes | None = None) -> Hello:
    resume = None if session is None else Resume(session=session, received=0)
    return Hello(
        instance=process(number),
        epoch=epoch,
        software="test",
        features=(),
        limits=LIMITS,
        resume=resume,
    )


def held(*, attached: bool) -> Ownership:
    """By process 1, epoch 5."""
    ownership = Ownership()
    ownership.accept(hello(1, 5), SESSION)
    ownership.attached = attached
    return ownership


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize(
    ("arriving", "decision"),
    [
        (hello(1, 6, SESSION), Decision.RESUME),
        (hello(1, 2**64 - 1, SESSION), Decision.RESUME),
        (hello(1, 6), Decision.RENEW),
        (hello(1, 6, OTHER_SESSION), Decision.RENEW),
        (hello(1, 5, SESSION), Decision.STALE),
        (hello(1, 4, SESSION), Decision.STALE),
        (hello(1, 5), Decision.STALE),
        (hello(1, 0, OTHER_SESSION), Decision.STALE),
    ],
)
def test_the_same_process(arriving: Hello, decision: Decision, attached: bool) -> None:
    assert held(attached=attached).decide(arriving) is decision


@pytest.mark.parametrize(
    ("attached", "decision"), [(True, Decision.PROBE), (False, Decision.RENEW)]
)
@pytest.mark.parametrize("session", [None, SESSION, OTHER_SESSION])
def test_another_process(attached: bool, decision: Decision, session: bytes | None) -> None:
    """Whatever it claims: a session belongs to the process that began it."""
    assert held(attached=attached).decide(hello(2, 0, session)) is decision


@pytest.mark.parametrize("session", [None, SESSION])
def test_whoever_comes_first_is_let_in(session: bytes | None) -> None:
    assert Ownership().decide(hello(1, 0, session)) is Decision.RENEW


def test_a_displaced_process_stays_out_while_the_winner_has_its_session() -> None:
    ownership = held(attached=False)
    ownership.accept(hello(2, 1), OTHER_SESSION)
    for attached in (True, False):
        ownership.attached = attached
        assert ownership.decide(hello(1, 6, SESSION)) is Decision.DUPLICATE
    assert ownership.decide(hello(3, 0)) is Decision.RENEW
    ownership.end()
    assert ownership.decide(hello(1, 6, SESSION)) is Decision.RENEW


def test_an_ended_session_cannot_be_resumed() -> None:
    ownership = held(attached=True)
    ownership.end()
    assert not ownership.attached
    assert ownership.decide(hello(1, 6, SESSION)) is Decision.RENEW
    assert ownership.decide(hello(2, 0)) is Decision.RENEW


def test_a_process_that_comes_again_does_not_displace_itself() -> None:
    ownership = held(attached=False)
    ownership.accept(hello(1, 6), OTHER_SESSION)
    assert ownership.decide(hello(1, 7, OTHER_SESSION)) is Decision.RESUME


def test_the_displaced_are_remembered_up_to_a_bound() -> None:
    ownership = Ownership()
    for number in range(DISPLACED_KEPT + 1):
        ownership.accept(hello(number, 0), SESSION)
    assert ownership.decide(hello(0, 1)) is Decision.DUPLICATE
    ownership.accept(hello(200, 0), SESSION)
    assert ownership.decide(hello(0, 1)) is Decision.RENEW
    assert ownership.decide(hello(1, 1)) is Decision.DUPLICATE


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, SESSION])),
        max_size=12,
    ),
    st.data(),
)
def test_an_attached_process_is_never_displaced_unasked(
    arrivals: list[tuple[int, int, bytes | None]], data: st.DataObject
) -> None:
    ownership = Ownership()
    for number, epoch, session in arrivals:
        arriving = hello(number, epoch, session)
        decision = ownership.decide(arriving)
        if (
            ownership.session is not None
            and ownership.attached
            and process(number) != ownership.instance
        ):
            assert decision in (Decision.PROBE, Decision.DUPLICATE)
        if decision in (Decision.RESUME, Decision.RENEW):
            ownership.accept(arriving, SESSION)
            ownership.attached = data.draw(st.booleans())
