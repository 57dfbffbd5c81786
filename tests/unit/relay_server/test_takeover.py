from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.wire.hello import Hello, Resume
from relay_server.takeover import DISPLACED_KEPT, Decision, Tenure
from tests.unit.protocol.transport.ends import LIMITS

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


def held(*, attached: bool) -> Tenure:
    """By process 1, epoch 5."""
    tenure = Tenure()
    tenure.accept(hello(1, 5), SESSION)
    tenure.attached = attached
    return tenure


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
    assert Tenure().decide(hello(1, 0, session)) is Decision.RENEW


def test_a_displaced_process_stays_out_while_the_winner_has_its_session() -> None:
    tenure = held(attached=False)
    tenure.accept(hello(2, 1), OTHER_SESSION)
    for attached in (True, False):
        tenure.attached = attached
        assert tenure.decide(hello(1, 6, SESSION)) is Decision.DUPLICATE
    assert tenure.decide(hello(3, 0)) is Decision.RENEW
    tenure.end()
    assert tenure.decide(hello(1, 6, SESSION)) is Decision.RENEW


def test_an_ended_session_cannot_be_resumed() -> None:
    tenure = held(attached=True)
    tenure.end()
    assert not tenure.attached
    assert tenure.decide(hello(1, 6, SESSION)) is Decision.RENEW
    assert tenure.decide(hello(2, 0)) is Decision.RENEW


def test_a_process_that_comes_again_does_not_displace_itself() -> None:
    tenure = held(attached=False)
    tenure.accept(hello(1, 6), OTHER_SESSION)
    assert tenure.decide(hello(1, 7, OTHER_SESSION)) is Decision.RESUME


def test_the_displaced_are_remembered_up_to_a_bound() -> None:
    tenure = Tenure()
    for number in range(DISPLACED_KEPT + 1):
        tenure.accept(hello(number, 0), SESSION)
    assert tenure.decide(hello(0, 1)) is Decision.DUPLICATE
    tenure.accept(hello(200, 0), SESSION)
    assert tenure.decide(hello(0, 1)) is Decision.RENEW
    assert tenure.decide(hello(1, 1)) is Decision.DUPLICATE


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
    tenure = Tenure()
    for number, epoch, session in arrivals:
        arriving = hello(number, epoch, session)
        decision = tenure.decide(arriving)
        if tenure.session is not None and tenure.attached and process(number) != tenure.instance:
            assert decision in (Decision.PROBE, Decision.DUPLICATE)
        if decision in (Decision.RESUME, Decision.RENEW):
            tenure.accept(arriving, SESSION)
            tenure.attached = data.draw(st.booleans())
