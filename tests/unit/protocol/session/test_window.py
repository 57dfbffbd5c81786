from __future__ import annotations

import pytest

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.session.window import MIN_RTT_FLOOR, ReceiveWindow, SendWindow
from protocol.wire.frame import MAX_WINDOW


def test_credit_is_used_to_the_last_byte_and_no_further() -> None:
    credit = SendWindow(100)
    credit.use(60)
    credit.use(40)
    assert credit.credit == 0
    with pytest.raises(LocalProtocolError):
        credit.use(1)


def test_credit_is_granted_up_to_the_limit_and_no_further() -> None:
    credit = SendWindow(MAX_WINDOW - 10)
    with pytest.raises(RemoteProtocolError):
        credit.grant(11)
    credit.grant(10)
    assert credit.credit == MAX_WINDOW
    with pytest.raises(RemoteProtocolError):
        credit.grant(1)


def test_a_grant_of_nothing_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        SendWindow(1).grant(0)


def test_a_refund_is_no_grant_of_the_peer() -> None:
    credit = SendWindow(100)
    credit.use(100)
    credit.grant(MAX_WINDOW)
    credit.refund(100)
    assert credit.credit == MAX_WINDOW + 100
    with pytest.raises(RemoteProtocolError):
        credit.grant(1)


def test_a_window_is_filled_to_the_last_byte_and_no_further() -> None:
    window = ReceiveWindow(100)
    window.accept(99)
    window.accept(1)
    with pytest.raises(RemoteProtocolError):
        window.accept(1)


def test_an_update_is_due_at_half_the_window() -> None:
    window = ReceiveWindow(101)
    window.accept(101)
    assert not window.consume(50)
    assert window.consume(1)
    assert window.take_update(0, 0, grow=False) == 51
    window.accept(51)
    with pytest.raises(RemoteProtocolError):
        window.accept(1)


def test_a_window_is_pinched_when_it_could_double_what_the_peer_has_left() -> None:
    window = ReceiveWindow(100)
    assert not window.pinched
    window.accept(80)
    assert not window.pinched, "nothing to give back"
    window.consume(19)
    assert not window.pinched
    window.consume(1)
    assert window.pinched
    assert window.take_update(0, 0, grow=False) == 20
    assert not window.pinched
    window.accept(40)
    assert not window.pinched
    window.consume(1)
    assert window.pinched


RTT = 0.1


@pytest.mark.parametrize(
    ("after", "min_rtt", "grow", "limit", "increment", "size"),
    [
        (2 * RTT - 0.001, RTT, True, 1000, 150, 200),
        (2 * RTT, RTT, True, 1000, 50, 100),  # just too slow
        (2 * RTT - 0.001, RTT, False, 1000, 50, 100),  # the local socket did not keep up
        (2 * RTT - 0.001, RTT, True, 150, 100, 150),  # only up to the limit
        (2 * RTT - 0.001, RTT, True, 100, 50, 100),  # at the limit
        # An RTT unknown or tiny counts as 2 ms.
        (2 * MIN_RTT_FLOOR - 0.0001, 0, True, 1000, 150, 200),
        (2 * MIN_RTT_FLOOR + 0.0001, 0, True, 1000, 50, 100),
    ],
)
def test_growth(
    after: float, min_rtt: float, grow: bool, limit: int, increment: int, size: int
) -> None:
    window = ReceiveWindow(100, limit=limit, now=50.0)
    window.accept(100)
    window.consume(50)
    assert window.take_update(50.0 + after, min_rtt, grow=grow) == increment
    assert window.size == size
    # What was granted can be used, and not a byte more.
    window.accept(increment)
    with pytest.raises(RemoteProtocolError):
        window.accept(1)


def test_the_time_of_growth_counts_from_the_last_update() -> None:
    window = ReceiveWindow(100, limit=1000, now=0.0)
    window.accept(100)
    window.consume(50)
    assert window.take_update(10.0, RTT, grow=True) == 50
    window.consume(50)
    assert window.take_update(10.1, RTT, grow=True) == 150


def test_without_a_limit_a_window_never_grows() -> None:
    window = ReceiveWindow(100)
    window.accept(100)
    window.consume(100)
    assert window.take_update(0.0, RTT, grow=True) == 100
    assert window.size == 100
