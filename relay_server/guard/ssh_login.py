"""Recognises a successful SSH login by the sizes of what the SSH server sends. Pure.

All of it is encrypted. But an agent forwards each piece as it reads it, a server sends one message
for each request, and three of these have sizes that tell them apart (RFC 4253, section 6: payloads
are padded to blocks):

    SERVICE_ACCEPT      17 bytes of payload; the first small piece after the key exchange
    USERAUTH_FAILURE    15 or more, as it lists the methods that can continue
    USERAUTH_SUCCESS    1: a block or two less than the first, and nothing else is that small

    dropbear 538, 428, 44, 52 (failure), 100 (the key is acceptable), 36 (success), ...
    OpenSSH  41, 1088, 1564, 44, 76 (failure), 76 (failure), 28 (success), ...

So a wrong guess is seen to be one, however many bytes it took. OpenSSH sends more right after
USERAUTH_SUCCESS, and a busy router may read both as one piece; therefore many different sizes also
count as a login, since wrong guesses are all answered alike. If a server pads at random, nothing is
seen at first; and a client made for the purpose may have a server send something as small. The
guard has other measures for both.
"""

from __future__ import annotations

from typing import Final

# A KEXINIT has 300 bytes and more; the answer to the key exchange has a key, a point, a signature.
_EXCHANGE: Final = 128
_EXCHANGES: Final = 2
# SERVICE_ACCEPT with the smallest of ciphers and MACs (umac-64) and the largest (hmac-sha2-512).
_LEAST_ACCEPT: Final = 36
_MOST_ACCEPT: Final = 100
# Fewer different sizes after SERVICE_ACCEPT may be wrong guesses: USERAUTH_FAILURE, and at most a
# banner, a prompt and a disconnect beside it.
_SIZES: Final = 5


class LoginDetector:
    """Listens to the server's side of one visitor; `seen` becomes true at the login."""

    def __init__(self) -> None:
        self.seen = False
        self._exchanges = 0
        self._sizes: set[int] = set()  # after SERVICE_ACCEPT
        self._accept = 0  # the size of SERVICE_ACCEPT

    def hear(self, size: int) -> None:
        """The server sent a piece of `size` bytes."""
        if self.seen:
            return
        if self._accept:
            self._sizes.add(size)
            self.seen = size < self._accept or len(self._sizes) >= _SIZES
        elif size >= _EXCHANGE:
            self._exchanges += 1
        elif self._exchanges >= _EXCHANGES and _LEAST_ACCEPT <= size <= _MOST_ACCEPT:
            self._accept = size
