"""Noise XK: the handshake and the ciphers of a link.

The Noise Protocol Framework, revision 34, cut down to `Noise_XK_25519_AESGCM_SHA256` and
`Noise_XK_25519_ChaChaPoly_SHA256`. The initiator (agent) knows the responder's (relay's) static key
beforehand and shows its own only in message 3:

    <- s                    known beforehand
    ...
    -> e, es                1: proves that the initiator knows the responder's static key
    <- e, ee                2: fresh from here on
    -> s, se                3: proves the initiator's static key

Names follow the specification (MixKey, MixHash, EncryptAndHash, Split), so that the code can be
compared with it.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from collections.abc import Callable
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from protocol.errors import LocalProtocolError, RemoteProtocolError

Buffer = bytes | bytearray | memoryview

KEY_SIZE: Final = 32
TAG_SIZE: Final = 16
MAX_MESSAGE: Final = 65535  # Noise's own limit, section 3

# The specification reserves the highest nonce for rekey().
_REKEY_NONCE: Final = 2**64 - 1

# The *_into calls are new in cryptography 50; OpenWrt ships 41.
_HAS_INTO: Final = all(
    hasattr(aead, name)
    for aead in (AESGCM, ChaCha20Poly1305)
    for name in ("encrypt_into", "decrypt_into")
)


class Suite(enum.IntEnum):
    """The AEAD of a link, by its number in the preface."""

    AESGCM = 1
    CHACHAPOLY = 2


_PROTOCOL_NAMES: Final = {
    Suite.AESGCM: b"Noise_XK_25519_AESGCM_SHA256",
    Suite.CHACHAPOLY: b"Noise_XK_25519_ChaChaPoly_SHA256",
}
# 32 zero bits, then the counter: big-endian for GCM, little-endian for ChaChaPoly (section 12).
_NONCES: Final = {Suite.AESGCM: struct.Struct(">4xQ"), Suite.CHACHAPOLY: struct.Struct("<4xQ")}

_Transform = Callable[[Buffer, Buffer, Buffer | None], bytes]
_TransformInto = Callable[[Buffer, Buffer, Buffer | None, memoryview], object]


class StaticKey:
    """An X25519 key pair, long-lived or ephemeral. Its repr shows only the public half."""

    __slots__ = ("_key", "public")

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key
        self.public: Final = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Self:
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_private(cls, private: bytes) -> Self:
        """Raises ValueError unless `private` has 32 bytes."""
        return cls(X25519PrivateKey.from_private_bytes(private))

    @property
    def private(self) -> bytes:
        return self._key.private_bytes_raw()

    def exchange(self, public: bytes) -> bytes:
        """The secret shared with the holder of `public`. Raises ValueError for a low-order point.

        Such a point gives the same "secret" with every key, so it would prove nothing.
        """
        return self._key.exchange(X25519PublicKey.from_public_bytes(public))

    def __repr__(self) -> str:
        return f"StaticKey(public={self.public.hex()})"


class CipherState:
    """One direction of a link: a key, and how many messages it has sealed or opened."""

    __slots__ = (
        "_decrypt",
        "_decrypt_into",
        "_encrypt",
        "_encrypt_into",
        "_pack_nonce",
        "_suite",
        "nonce",
    )

    def __init__(self, suite: Suite, key: bytes) -> None:
        self._suite = suite
        self._pack_nonce = _NONCES[suite].pack
        self.nonce = 0
        self._set_key(key)

    def _set_key(self, key: bytes) -> None:
        # The methods that the data path calls are looked up here, once for each key.
        aead = AESGCM(key) if self._suite is Suite.AESGCM else ChaCha20Poly1305(key)
        self._encrypt: _Transform = aead.encrypt
        self._decrypt: _Transform = aead.decrypt
        self._encrypt_into: _TransformInto
        self._decrypt_into: _TransformInto
        if _HAS_INTO:
            self._encrypt_into = aead.encrypt_into
            self._decrypt_into = aead.decrypt_into
        else:
            self._encrypt_into = _copying(aead.encrypt)
            self._decrypt_into = _copying(aead.decrypt)

    def encrypt_with_ad(self, ad: Buffer, plaintext: Buffer) -> bytes:
        sealed = self._encrypt(self._next_nonce(), plaintext, ad)
        self.nonce += 1
        return sealed

    def decrypt_with_ad(self, ad: Buffer, ciphertext: Buffer) -> bytes:
        try:
            plaintext = self._decrypt(self._next_nonce(), ciphertext, ad)
        except InvalidTag:
            raise RemoteProtocolError("authentication failed") from None
        self.nonce += 1
        return plaintext

    def seal_into(self, plaintext: Buffer, out: memoryview) -> None:
        """Seal with empty associated data; `out` has exactly TAG_SIZE bytes more than `plaintext`.

        The two must not overlap: sealing in place is not documented to work.
        """
        self._encrypt_into(self._next_nonce(), plaintext, None, out)
        self.nonce += 1

    def open_into(self, ciphertext: Buffer, out: memoryview) -> None:
        """Open with empty associated data; `out` has exactly TAG_SIZE bytes less.

        Raises RemoteProtocolError; `out` then has unauthenticated bytes, which must not be used.
        The two must not overlap.
        """
        try:
            self._decrypt_into(self._next_nonce(), ciphertext, None, out)
        except InvalidTag:
            raise RemoteProtocolError("authentication failed") from None
        self.nonce += 1

    def rekey(self) -> None:
        """Replace the key by one derived from it (section 11.3); the nonce is not reset."""
        sealed = self._encrypt(self._pack_nonce(_REKEY_NONCE), bytes(KEY_SIZE), b"")
        self._set_key(sealed[:KEY_SIZE])

    def _next_nonce(self) -> bytes:
        if self.nonce >= _REKEY_NONCE:
            raise LocalProtocolError("nonces of this key are used up")
        return self._pack_nonce(self.nonce)


def _copying(transform: _Transform) -> _TransformInto:
    """A substitute for a missing *_into call, with one allocation and one copy more."""

    def into(nonce: Buffer, data: Buffer, ad: Buffer | None, out: memoryview) -> None:
        out[:] = transform(nonce, data, ad)

    return into


# What each message carries before its payload; even messages come from the initiator.
_PATTERN: Final = (("e", "es"), ("e", "ee"), ("s", "se"))
_FAILED: Final = -1


class Handshake:
    """One side of a handshake. After a failed read it cannot go on.

    `ephemeral` is for test vectors; without it the handshake makes a key of its own.
    """

    def __init__(
        self,
        *,
        suite: Suite,
        prologue: bytes,
        initiator: bool,
        static: StaticKey,
        remote_static: bytes | None = None,
        ephemeral: StaticKey | None = None,
    ) -> None:
        if initiator != (remote_static is not None):
            raise LocalProtocolError("the initiator, and only it, knows the other key beforehand")
        if remote_static is not None and len(remote_static) != KEY_SIZE:
            raise LocalProtocolError(f"a static key has {KEY_SIZE} bytes, not {len(remote_static)}")
        self._suite = suite
        self._initiator = initiator
        # Keys by their letters in the pattern.
        self._local = {"s": static, "e": ephemeral or StaticKey.generate()}
        self._remote = {"s": remote_static} if remote_static is not None else {}
        self._step = 0
        # A protocol name of at most 32 bytes is padded instead of hashed (section 5.2).
        self._hash = _PROTOCOL_NAMES[suite].ljust(hashlib.sha256().digest_size, b"\0")
        self._chaining_key = self._hash
        # The first MixKey makes it. The pattern begins with "e, es", so it is not needed earlier.
        self._cipher: CipherState
        self._mix_hash(prologue)
        self._mix_hash(static.public if remote_static is None else remote_static)

    @property
    def finished(self) -> bool:
        return self._step == len(_PATTERN)

    @property
    def remote_static(self) -> bytes | None:
        """The peer's static key. At the responder it is None until message 3 has proved it."""
        return self._remote["s"] if self._initiator or self.finished else None

    @property
    def handshake_hash(self) -> bytes:
        """Identifies this handshake: equal at both ends, and different in every other handshake."""
        self._require_finished()
        return self._hash

    def write_message(self, payload: Buffer = b"") -> bytes:
        step = self._turn(writing=True)
        message = b""
        for part in _PATTERN[step]:
            if part == "e":
                message += self._local["e"].public
                self._mix_hash(self._local["e"].public)
            elif part == "s":
                message += self._encrypt_and_hash(self._local["s"].public)
            else:
                self._mix_key(self._exchange(part))
        message += self._encrypt_and_hash(payload)
        if len(message) > MAX_MESSAGE:
            raise LocalProtocolError(f"handshake message of {len(message)} bytes")
        self._step = step + 1
        return message

    def read_message(self, message: Buffer) -> bytes:
        """Read the next message and return its payload. Raises RemoteProtocolError."""
        step = self._turn(writing=False)
        if len(message) > MAX_MESSAGE:
            raise RemoteProtocolError(f"handshake message of {len(message)} bytes")
        rest = bytes(message)
        for part in _PATTERN[step]:
            if part == "e":
                self._remote["e"], rest = _cut(rest, KEY_SIZE)
                self._mix_hash(self._remote["e"])
            elif part == "s":
                sealed, rest = _cut(rest, KEY_SIZE + TAG_SIZE)
                self._remote["s"] = self._decrypt_and_hash(sealed)
            else:
                self._mix_key(self._exchange(part))
        payload = self._decrypt_and_hash(rest)
        self._step = step + 1
        return payload

    def split(self) -> tuple[CipherState, CipherState]:
        """The ciphers of this side: to send, and to receive."""
        self._require_finished()
        first, second = _hkdf(self._chaining_key, b"")
        initiators = CipherState(self._suite, first)
        responders = CipherState(self._suite, second)
        return (initiators, responders) if self._initiator else (responders, initiators)

    def _turn(self, *, writing: bool) -> int:
        """Begin a step. The handshake counts as failed until the step has succeeded."""
        step = self._step
        initiators_turn = step % 2 == 0
        if step == _FAILED or self.finished or writing != (initiators_turn == self._initiator):
            raise LocalProtocolError(f"handshake step {step} is not this one")
        self._step = _FAILED
        return step

    def _require_finished(self) -> None:
        if not self.finished:
            raise LocalProtocolError("the handshake is not finished")

    def _exchange(self, pair: str) -> bytes:
        """`pair` names the initiator's key, then the responder's."""
        mine, theirs = (pair[0], pair[1]) if self._initiator else (pair[1], pair[0])
        try:
            return self._local[mine].exchange(self._remote[theirs])
        except ValueError:
            raise RemoteProtocolError("the peer's public key is a low-order point") from None

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def _mix_key(self, secret: bytes) -> None:
        self._chaining_key, key = _hkdf(self._chaining_key, secret)
        self._cipher = CipherState(self._suite, key)

    def _encrypt_and_hash(self, plaintext: Buffer) -> bytes:
        sealed = self._cipher.encrypt_with_ad(self._hash, plaintext)
        self._mix_hash(sealed)
        return sealed

    def _decrypt_and_hash(self, sealed: bytes) -> bytes:
        plaintext = self._cipher.decrypt_with_ad(self._hash, sealed)
        self._mix_hash(sealed)
        return plaintext


def _cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise RemoteProtocolError("handshake message cut short")
    return data[:size], data[size:]


def _hkdf(chaining_key: bytes, secret: bytes) -> tuple[bytes, bytes]:
    def mac(key: bytes, data: bytes) -> bytes:
        return hmac.digest(key, data, "sha256")

    root = mac(chaining_key, secret)
    first = mac(root, b"\x01")
    return first, mac(root, first + b"\x02")
