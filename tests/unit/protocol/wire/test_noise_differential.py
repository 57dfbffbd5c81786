"""Our Noise and noiseprotocol's, given the same keys: they say the same, byte for byte.

Two pairs run side by side, one of each implementation. What one writer says the other must say
too, and either reader must take it, or reject it, like the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from protocol.errors import RemoteProtocolError
from protocol.wire.noise import (
    KEY_SIZE,
    MAX_MESSAGE,
    TAG_SIZE,
    CipherState,
    Handshake,
    StaticKey,
    Suite,
)

NAMES = {
    Suite.AESGCM: b"Noise_XK_25519_AESGCM_SHA256",
    Suite.CHACHAPOLY: b"Noise_XK_25519_ChaChaPoly_SHA256",
}
STEPS = 3
PATTERN = bytes(range(251)) * (MAX_MESSAGE // 251 + 1)
# It warns of a fixed ephemeral key, which is what makes the two comparable.
pytestmark = pytest.mark.filterwarnings("ignore:One of ephemeral keypairs is already set")
# What each message holds beside its payload: e and a tag, the same, s with a tag and a tag.
AROUND = (KEY_SIZE + TAG_SIZE, KEY_SIZE + TAG_SIZE, KEY_SIZE + 2 * TAG_SIZE)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """All that decides every byte of a handshake, but for the payloads. Keys are private."""

    suite: Suite
    prologue: bytes
    static: tuple[bytes, bytes]  # the initiator's, the responder's
    ephemeral: tuple[bytes, bytes]


def ours(terms: Terms) -> tuple[Handshake, Handshake]:
    relay = StaticKey.from_private(terms.static[1])

    def side(number: int) -> Handshake:
        return Handshake(
            suite=terms.suite,
            prologue=terms.prologue,
            initiator=number == 0,
            static=StaticKey.from_private(terms.static[number]),
            remote_static=relay.public if number == 0 else None,
            ephemeral=StaticKey.from_private(terms.ephemeral[number]),
        )

    return side(0), side(1)


def theirs(terms: Terms) -> tuple[NoiseConnection, NoiseConnection]:
    def side(number: int) -> NoiseConnection:
        peer = NoiseConnection.from_name(NAMES[terms.suite])
        peer.set_prologue(terms.prologue)
        peer.set_keypair_from_private_bytes(Keypair.STATIC, terms.static[number])
        peer.set_keypair_from_private_bytes(Keypair.EPHEMERAL, terms.ephemeral[number])
        if number == 0:
            relay = StaticKey.from_private(terms.static[1])
            peer.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, relay.public)
            peer.set_as_initiator()
        else:
            peer.set_as_responder()
        peer.start_handshake()
        return peer

    return side(0), side(1)


def payload(size: int) -> bytes:
    return PATTERN[:size]


keys = st.tuples(*[st.binary(min_size=KEY_SIZE, max_size=KEY_SIZE)] * 2)
terms_of_all_kinds = st.builds(
    Terms,
    suite=st.sampled_from(Suite),
    prologue=st.binary(max_size=200),
    static=keys,
    ephemeral=keys,
)


def sizes(around: int) -> st.SearchStrategy[int]:
    most = MAX_MESSAGE - around
    return st.one_of(st.integers(0, 300), st.sampled_from([4096, most - 1, most]))


handshake_sizes = st.tuples(*(sizes(around) for around in AROUND))


@given(
    terms=terms_of_all_kinds,
    handshake=handshake_sizes,
    transport=st.lists(st.tuples(st.booleans(), sizes(TAG_SIZE), st.booleans()), max_size=5),
)
def test_every_byte_is_the_same(
    terms: Terms, handshake: tuple[int, ...], transport: list[tuple[bool, int, bool]]
) -> None:
    """`transport`: who sends how much, and whether that direction is rekeyed afterwards."""
    mine, peers = ours(terms), theirs(terms)
    for step, size in enumerate(handshake):
        writer, reader = step % 2, 1 - step % 2
        message = mine[writer].write_message(payload(size))
        assert message == peers[writer].write_message(payload(size))
        assert mine[reader].read_message(message) == payload(size)
        assert peers[reader].read_message(message) == payload(size)
    for number in (0, 1):
        assert mine[number].finished
        assert peers[number].handshake_finished
        assert mine[number].handshake_hash == peers[number].get_handshake_hash()
    assert mine[1].remote_static == StaticKey.from_private(terms.static[0]).public

    ciphers = [side.split() for side in mine]
    for sender, size, rekey in transport:
        send, _ = ciphers[sender]
        _, receive = ciphers[1 - sender]
        theirs_out, theirs_in = peers[sender], peers[1 - sender]
        # The key itself: theirs in our cipher, at our nonce, seals as ours does.
        borrowed = CipherState(terms.suite, theirs_out.noise_protocol.cipher_state_encrypt.k)
        borrowed.nonce = send.nonce
        sealed = send.encrypt_with_ad(b"", payload(size))
        assert sealed == borrowed.encrypt_with_ad(b"", payload(size))
        assert sealed == theirs_out.encrypt(payload(size))
        assert receive.decrypt_with_ad(b"", sealed) == payload(size)
        assert theirs_in.decrypt(sealed) == payload(size)
        if rekey:
            send.rekey()
            receive.rekey()
            theirs_out.rekey_outbound_cipher()
            theirs_in.rekey_inbound_cipher()


def flipped(message: bytes, position: int, mask: int) -> bytes:
    position %= len(message)
    return message[:position] + bytes([message[position] ^ mask]) + message[position + 1 :]


def cut(message: bytes, position: int, _: int) -> bytes:
    return message[: position % len(message)]


def longer(message: bytes, _: int, mask: int) -> bytes:
    return message + bytes([mask])


@given(
    terms=terms_of_all_kinds,
    size=st.integers(0, 300),
    step=st.integers(0, STEPS - 1),
    tamper=st.sampled_from([flipped, cut, longer]),
    position=st.integers(0, 1000),
    mask=st.integers(1, 255),
)
def test_what_is_tampered_with_is_rejected_by_both_at_once(
    terms: Terms,
    size: int,
    step: int,
    tamper: Callable[[bytes, int, int], bytes],
    position: int,
    mask: int,
) -> None:
    mine, peers = ours(terms), theirs(terms)
    for done in range(step):
        writer, reader = done % 2, 1 - done % 2
        message = mine[writer].write_message()
        mine[reader].read_message(message)
        peers[writer].write_message()
        peers[reader].read_message(message)
    writer, reader = step % 2, 1 - step % 2
    broken = tamper(mine[writer].write_message(payload(size)), position, mask)
    with pytest.raises(RemoteProtocolError):
        mine[reader].read_message(broken)
    # Theirs has no error of its own for all of it: the cipher's, or what an empty key leads to.
    with pytest.raises(Exception):  # noqa: B017
        peers[reader].read_message(broken)
    assert not mine[reader].finished
    assert not peers[reader].handshake_finished


@given(
    terms=terms_of_all_kinds,
    size=st.integers(0, 300),
    sender=st.integers(0, 1),
    position=st.integers(0, 1000),
    mask=st.integers(1, 255),
)
def test_the_same_holds_for_what_follows(
    terms: Terms, size: int, sender: int, position: int, mask: int
) -> None:
    mine, peers = ours(terms), theirs(terms)
    for step in range(STEPS):
        message = mine[step % 2].write_message()
        peers[step % 2].write_message()
        mine[1 - step % 2].read_message(message)
        peers[1 - step % 2].read_message(message)
    send, _ = mine[sender].split()
    _, receive = mine[1 - sender].split()
    sealed = send.encrypt_with_ad(b"", payload(size))
    broken = flipped(sealed, position, mask)
    with pytest.raises(RemoteProtocolError):
        receive.decrypt_with_ad(b"", broken)
    with pytest.raises(Exception):  # noqa: B017
        peers[1 - sender].decrypt(broken)
    # Neither has moved on: the genuine one still opens.
    assert receive.decrypt_with_ad(b"", sealed) == payload(size)
    assert peers[1 - sender].decrypt(sealed) == payload(size)
