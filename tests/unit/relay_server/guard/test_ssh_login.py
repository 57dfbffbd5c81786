"""The sizes are those of real servers, with OpenSSH's client unless said otherwise."""

from __future__ import annotations

import pytest

from relay_server.guard.ssh_login import LoginDetector

DROPBEAR = [538, 428]
OPENSSH = [41, 1088, 1564]


def seen_at(sizes: list[int]) -> int | None:
    """At which piece the login was seen."""
    login = LoginDetector()
    for number, size in enumerate(sizes):
        login.hear(size)
        if login.seen:
            return number
    return None


@pytest.mark.parametrize(
    ("exchange", "answers", "success"),
    [
        (DROPBEAR, [44, 52, 100, 36, 44, 36, 36, 88], 3),
        ([538, 448], [64, 80, 112, 48, 64, 48, 176], 3),  # aes128-ctr, hmac-sha2-256
        (DROPBEAR, [44, 52, 100, 36, 44, 36, 88], 3),  # dropbear's own client
        (DROPBEAR, [44, 52, 52, 36, 44], 3),  # the second password was right
        (OPENSSH, [44, 76, 100, 28, 288, 216, 72, 124], 3),
        ([41, 1088, 1572], [52, 84, 100, 36, 296, 232, 72], 3),  # aes128-gcm
        ([41, 1088, 1584], [64, 96, 112, 48, 320, 256, 112], 3),
        (OPENSSH, [36, 68, 20, 280], 2),  # umac-64-etm
        (OPENSSH, [100, 132, 84, 280], 2),  # hmac-sha2-512-etm
        ([300, 300, 300, 300], [44, 28], 1),  # as much exchange as one likes
        ([41, 1088, 600, 16], [44, 76, 28], 2),  # NEWKEYS comes by itself
        (OPENSSH, [44, 28], 1),  # asked for nothing
        (OPENSSH, [44, 76, 100, 316, 216, 72, 124], 5),  # read as one with what came behind it
        (OPENSSH, [44, 76, 76, 316, 216, 72, 124], 6),  # the same with a password
    ],
)
def test_a_login_is_seen_when_it_is_granted(
    exchange: list[int], answers: list[int], success: int
) -> None:
    assert seen_at(exchange + answers) == len(exchange) + success


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [538],
        DROPBEAR,
        [*DROPBEAR, 44, *[52] * 10],
        [*OPENSSH, 44, *[76] * 6],
        [41, 1088, 524, 44, *[76] * 6],  # asyncssh
        [*OPENSSH, 44, *[44] * 6],  # "publickey" alone pads to the size of SERVICE_ACCEPT
        # A notice, then questions, and in the end it is thrown out.
        [*OPENSSH, 44, 300, 76, *[84, 76] * 5, 84, 124],
        [*OPENSSH, 101, 28],  # too large to be one
        [*OPENSSH, 35, 28],  # too small
        [41, 1088, 44, 28],  # before the exchange was answered
        [127, 127, 127, 44, 28],  # no exchange
        [20] * 100,
        [1400] * 100,
    ],
)
def test_nothing_else_is(sizes: list[int]) -> None:
    assert seen_at(sizes) is None


def test_once_seen_it_stays_so() -> None:
    login = LoginDetector()
    for size in (*DROPBEAR, 44, 36, 44, 1400, 36):
        login.hear(size)
    assert login.seen


def test_a_key_exchange_later_changes_nothing() -> None:
    assert seen_at([*DROPBEAR, 44, 52, 538, 428, 52]) is None
