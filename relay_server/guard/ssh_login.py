"""Whether an SSH server let a visitor in, told by the sizes of what it says. Pure.

All of it is encrypted, but an agent sends on each piece as it reads it, a server that has been
asked something says one thing, and three of those have sizes that tell them apart (RFC 4253,
section 6: payloads are padded to blocks):

    SERVICE_ACCEPT      17 bytes of payload; the first small piece after the key exchange
    USERAUTH_FAILURE    15 or more, as it lists what else may be tried
    USERAUTH_SUCCESS    1: a block or two less than the first, and nothing else is that small

    dropbear 538, 428, 44, 52 (no), 100 (show that you have the key), 36 (in), ...
    OpenSSH  41, 1088, 1564, 44, 76 (no), 76 (no), 28 (in), ...

So a guess that was wrong looks like one, however many bytes it took. OpenSSH says more right behind
the last of these, and a busy router reads both as one piece; but what is said in a session has many
sizes, and guesses are answered alike. Where a server pads at random nothing is seen at first, and a
client that is made for it may have a server say something else as small. The guard has other
measures for both.
"""

from __future__ import annotations

from typing import Final

# A KEXINIT has 300 bytes and more; the key exchange's answer holds a key, a point and a signature.
_EXCHANGE: Final = 128
_EXCHANGES: Final = 2
# SERVICE_ACCEPT with the smallest of ciphers and MACs (umac-64) and the largest (hmac-sha2-512).
_LEAST_ACCEPT: Final = 36
_MOST_ACCEPT: Final = 100
# Wrong guesses see "no", and at most a notice, a question and "too many" beside it.
_SIZES: Final = 5


class LoginDetector:
    def __init__(self) -> None:
        self.seen = False
        self._exchanges = 0
        self._sizes: set[int] = set()  # after SERVICE_ACCEPT
        self._accept = 0  # the size of SERVICE_ACCEPT

    def hear(self, size: int) -> None:
        """The server sent a piece of so many bytes."""
        if self.seen:
            return
        if self._accept:
            self._sizes.add(size)
            self.seen = size < self._accept or len(self._sizes) >= _SIZES
        elif size >= _EXCHANGE:
            self._exchanges += 1
        elif self._exchanges >= _EXCHANGES and _LEAST_ACCEPT <= size <= _MOST_ACCEPT:
            self._accept = size
