"""Invitations: whatever is pasted is refused in one line, or is the one text of what it says."""

from __future__ import annotations

from protocol.wire.identifiers import RelayKey, Token
from protocol.wire.invitation import Invitation, InvitationError, _checksum, _to_base32
from tests.fuzz.choices import Choices


def fuzz_one(data: bytes) -> None:
    """By the first byte: text as pasted, a body behind a right checksum, or the parts of one."""
    choices = Choices(data)
    match choices.below(3):
        case 0:
            # As Python makes text of what a shell hands over.
            _read(choices.rest().decode(errors="surrogateescape"))
        case 1:
            body = choices.rest()
            text = "relay1_" + _to_base32(body + _checksum(body))
            invitation = _read(text)
            assert invitation is None or invitation.encode() == text
        case 2:
            _write(choices)


def _read(text: str) -> Invitation | None:
    try:
        invitation = Invitation.decode(text)
    except InvitationError as error:
        assert "\n" not in str(error), "more than one line for the user"
        assert len(str(error)) < 200
        return None
    assert invitation.token.hex() not in repr(invitation)
    assert "".join(text.split()).lower().endswith(invitation.encode())
    assert Invitation.decode(invitation.encode().upper()) == invitation
    return invitation


def _write(choices: Choices) -> None:
    key, token = choices.piece(32), choices.piece(16)
    hosts = tuple(
        (choices.piece(choices.number()).decode(errors="surrogateescape"), choices.number(3))
        for _ in range(choices.below(10))
    )
    try:
        invitation = Invitation(hosts=hosts, relay_key=RelayKey(key), token=Token(token))
    except InvitationError as error:
        assert "\n" not in str(error)
        return
    assert Invitation.decode(invitation.encode()) == invitation
