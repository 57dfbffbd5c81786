"""The invitation: one line from which a new agent knows its relay's key and where to dial it.

    relay1_<base32, lower case, no padding>

of `relay_key 32 ‖ token 16 ‖ count u8 ‖ count × (length u8 ‖ host UTF-8 ‖ port u16) ‖ checksum 4`,
big-endian. The checksum is the first bytes of the SHA-256 of "relay1_" and everything before the
checksum.

It is base32 and not base64: a double click selects all of it, and it survives line breaks, a change
of case, and being read aloud.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from typing import Final, Self

from protocol.wire.identifiers import RelayKey, Token
from protocol.wire.noise import KEY_SIZE

TOKEN_SIZE: Final = 16  # 128 bits, which cannot be guessed while the invitation is valid
MAX_HOSTS: Final = 8  # an invitation should fit on a few lines of a terminal
_MAX_HOST: Final = 255  # bytes: the largest length on the wire, and longer than any domain name

_PREFIX: Final = "relay1_"
_ANY_VERSION: Final = re.compile(r"relay([1-9][0-9]*)_", re.ASCII)
_CHECKSUM_SIZE: Final = 4


class InvitationError(ValueError):
    """The invitation is wrong; the text is one line for the user who pasted it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """`hosts` are (name or address, port), in the order in which to dial them."""

    hosts: tuple[tuple[str, int], ...]
    relay_key: RelayKey
    token: Token = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.hosts) <= MAX_HOSTS:
            raise InvitationError(f"expected 1 to {MAX_HOSTS} relay hosts, not {len(self.hosts)}")
        for host, port in self.hosts:
            if not (
                host.isprintable() and " " not in host and 1 <= len(host.encode()) <= _MAX_HOST
            ):
                raise InvitationError(f"expected a host name or address, not {host!a:.80}")
            if not 1 <= port <= 65535:
                raise InvitationError(f"expected a port from 1 to 65535, not {port}")
        if len(self.relay_key) != KEY_SIZE:
            raise InvitationError(f"expected a relay key of {KEY_SIZE} bytes")
        if len(self.token) != TOKEN_SIZE:
            raise InvitationError(f"expected a token of {TOKEN_SIZE} bytes")

    def encode(self) -> str:
        body = self.relay_key + self.token + bytes([len(self.hosts)])
        for host, port in self.hosts:
            name = host.encode()
            body += bytes([len(name)]) + name + port.to_bytes(2, "big")
        return _PREFIX + _to_base32(body + _checksum(body))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read an invitation. Raises InvitationError.

        White space anywhere, upper case, and words in front of the invitation are allowed.
        """
        text = "".join(text.split()).lower()
        prefix = _ANY_VERSION.search(text)
        if prefix is None:
            raise InvitationError("not an invitation: expected one line that starts with relay1_")
        text = text[prefix.start() :]
        if prefix[0] != _PREFIX:
            raise InvitationError(
                f"this invitation is of a newer kind ({prefix[0]:.16}): update relay-agent"
            )
        try:
            value = cls._from_body(_from_base32(text.removeprefix(_PREFIX)))
        except (IndexError, ValueError):
            value = None
        # An invitation has exactly one text. To compare it checks the checksum and everything that
        # the parsing above did not.
        if value is None or value.encode() != text:
            raise InvitationError("the invitation is cut short or mistyped: copy the whole line")
        return value

    @classmethod
    def _from_body(cls, body: bytes) -> Self:
        relay_key, token = body[:KEY_SIZE], body[KEY_SIZE : KEY_SIZE + TOKEN_SIZE]
        count, rest = body[KEY_SIZE + TOKEN_SIZE], body[KEY_SIZE + TOKEN_SIZE + 1 :]
        hosts = []
        for _ in range(count):
            size, rest = rest[0], rest[1:]
            hosts.append((rest[:size].decode(), int.from_bytes(rest[size : size + 2], "big")))
            rest = rest[size + 2 :]
        return cls(hosts=tuple(hosts), relay_key=RelayKey(relay_key), token=Token(token))


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(_PREFIX.encode() + body).digest()[:_CHECKSUM_SIZE]


def _to_base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _from_base32(text: str) -> bytes:
    return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
