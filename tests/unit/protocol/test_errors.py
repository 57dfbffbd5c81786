from __future__ import annotations

from protocol.errors import DenialCode, LinkDenied


def test_a_denial_says_why_and_when_to_come_again() -> None:
    denied = LinkDenied(DenialCode.BUSY, "too many handshakes", 2.5)
    assert str(denied) == denied.reason == "too many handshakes"
    assert (denied.code, denied.retry_after) == (DenialCode.BUSY, 2.5)


def test_a_denial_may_leave_the_interval_to_the_agent() -> None:
    assert LinkDenied(DenialCode.REVOKED, "revoked").retry_after == 0
