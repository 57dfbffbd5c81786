from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.wire import noise
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
    Suite.AESGCM: "Noise_XK_25519_AESGCM_SHA256",
    Suite.CHACHAPOLY: "Noise_XK_25519_ChaChaPoly_SHA256",
}
PROLOGUE = b"a prologue"
KEY = bytes(range(KEY_SIZE))
LAST_NONCE = 2**64 - 2

# Points of small order: 0, 1, p - 1 (order 2 and 4), two of order 8, and p, the unreduced 0.
LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    b"\xec" + b"\xff" * 30 + b"\x7f",
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    b"\xed" + b"\xff" * 30 + b"\x7f",
]

each_suite = pytest.mark.parametrize("suite", list(Suite))


def load_vectors() -> list[Any]:
    """noise_xk.json names its two sources; it holds those of their vectors that concern us."""
    path = Path(__file__).parents[3] / "vectors" / "noise_xk.json"
    vectors = json.loads(path.read_text(encoding="utf-8"))
    return [
        pytest.param(vector, id=f"{source}-{vector['protocol_name']}")
        for source in ("cacophony", "snow")
        for vector in vectors[source]
    ]


def pair(
    suite: Suite = Suite.AESGCM,
    *,
    agent: StaticKey | None = None,
    relay: StaticKey | None = None,
    pinned: bytes | None = None,
) -> tuple[Handshake, Handshake]:
    relay = relay or StaticKey.generate()
    initiator = Handshake(
        suite=suite,
        prologue=PROLOGUE,
        initiator=True,
        static=agent or StaticKey.generate(),
        remote_static=pinned or relay.public,
    )
    responder = Handshake(suite=suite, prologue=PROLOGUE, initiator=False, static=relay)
    return initiator, responder


def exchange(initiator: Handshake, responder: Handshake, *, steps: int = 3) -> None:
    sides = (initiator, responder)
    for step in range(steps):
        sides[1 - step % 2].read_message(sides[step % 2].write_message())


@pytest.fixture(params=["detected", "without the _into calls"])
def into(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways for a cipher to fill a buffer (on old releases of cryptography, one way twice)."""
    if request.param != "detected":
        monkeypatch.setattr(noise, "_HAS_INTO", False)


class TestAgainstOthers:
    @pytest.mark.parametrize("vector", load_vectors())
    def test_published_vectors(self, vector: dict[str, Any]) -> None:
        def key(name: str) -> StaticKey:
            return StaticKey.from_private(bytes.fromhex(vector[name]))

        suite = next(suite for suite in Suite if NAMES[suite] == vector["protocol_name"])
        initiator = Handshake(
            suite=suite,
            prologue=bytes.fromhex(vector["init_prologue"]),
            initiator=True,
            static=key("init_static"),
            remote_static=bytes.fromhex(vector["init_remote_static"]),
            ephemeral=key("init_ephemeral"),
        )
        responder = Handshake(
            suite=suite,
            prologue=bytes.fromhex(vector["resp_prologue"]),
            initiator=False,
            static=key("resp_static"),
            ephemeral=key("resp_ephemeral"),
        )
        sides = (initiator, responder)
        for step, message in enumerate(vector["messages"][:3]):
            payload = bytes.fromhex(message["payload"])
            written = sides[step % 2].write_message(payload)
            assert written.hex() == message["ciphertext"]
            assert sides[1 - step % 2].read_message(written) == payload
        assert initiator.handshake_hash == responder.handshake_hash
        if "handshake_hash" in vector:
            assert initiator.handshake_hash.hex() == vector["handshake_hash"]
        assert responder.remote_static == key("init_static").public

        ciphers = [side.split() for side in sides]
        for step, message in enumerate(vector["messages"][3:], start=3):
            send, _ = ciphers[step % 2]
            _, receive = ciphers[1 - step % 2]
            sealed = send.encrypt_with_ad(b"", bytes.fromhex(message["payload"]))
            assert sealed.hex() == message["ciphertext"]
            assert receive.decrypt_with_ad(b"", sealed).hex() == message["payload"]


class TestStaticKey:
    def test_survives_as_its_private_bytes(self) -> None:
        key = StaticKey.generate()
        again = StaticKey.from_private(key.private)
        assert again.public == key.public
        assert len(key.private) == len(key.public) == KEY_SIZE

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_private_of_wrong_length(self, size: int) -> None:
        with pytest.raises(ValueError, match="32"):
            StaticKey.from_private(bytes(size))

    def test_exchange_agrees(self) -> None:
        one, other = StaticKey.generate(), StaticKey.generate()
        assert one.exchange(other.public) == other.exchange(one.public)

    @pytest.mark.parametrize("point", LOW_ORDER)
    def test_exchange_refuses_low_order_points(self, point: bytes) -> None:
        with pytest.raises(ValueError):
            StaticKey.generate().exchange(point)

    def test_repr_keeps_the_secret(self) -> None:
        key = StaticKey.generate()
        assert key.private.hex() not in repr(key)
        assert key.public.hex() in repr(key)


@pytest.mark.usefixtures("into")
class TestCipherState:
    @each_suite
    @pytest.mark.parametrize("size", [0, 1, 64, MAX_MESSAGE - TAG_SIZE])
    def test_into_is_the_same_as_with_empty_ad(self, suite: Suite, size: int) -> None:
        plaintext = bytes(size)
        sealed = memoryview(bytearray(size + TAG_SIZE))
        CipherState(suite, KEY).seal_into(memoryview(plaintext), sealed)
        assert sealed == CipherState(suite, KEY).encrypt_with_ad(b"", plaintext)
        opened = memoryview(bytearray(b"\xff" * size))
        CipherState(suite, KEY).open_into(sealed, opened)
        assert opened == plaintext
        assert CipherState(suite, KEY).decrypt_with_ad(b"", sealed) == plaintext

    @each_suite
    def test_nonce_counts_every_use(self, suite: Suite) -> None:
        sender, receiver = CipherState(suite, KEY), CipherState(suite, KEY)
        seen = set()
        for count in range(4):
            assert sender.nonce == receiver.nonce == count
            out = memoryview(bytearray(4 + TAG_SIZE))
            if count % 2:
                out[:] = sender.encrypt_with_ad(b"", b"same")
                receiver.open_into(out, memoryview(bytearray(4)))
            else:
                sender.seal_into(b"same", out)
                receiver.decrypt_with_ad(b"", out)
            seen.add(bytes(out))
        assert len(seen) == 4

    def test_nonce_layouts(self) -> None:
        for suite, aead, order in (
            (Suite.AESGCM, AESGCM, "big"),
            (Suite.CHACHAPOLY, ChaCha20Poly1305, "little"),
        ):
            cipher = CipherState(suite, KEY)
            cipher.nonce = 0x0102030405060708
            nonce = bytes(4) + cipher.nonce.to_bytes(8, order)
            assert cipher.encrypt_with_ad(b"ad", b"text") == aead(KEY).encrypt(
                nonce, b"text", b"ad"
            )

    @each_suite
    @pytest.mark.parametrize("flip", [0, 3, 4, 19])
    def test_failure_keeps_the_nonce(self, suite: Suite, flip: int) -> None:
        sealed = bytearray(CipherState(suite, KEY).encrypt_with_ad(b"", b"text"))
        sealed[flip] ^= 1
        cipher = CipherState(suite, KEY)
        with pytest.raises(RemoteProtocolError):
            cipher.decrypt_with_ad(b"", sealed)
        with pytest.raises(RemoteProtocolError):
            cipher.open_into(sealed, memoryview(bytearray(4)))
        assert cipher.nonce == 0
        sealed[flip] ^= 1
        assert cipher.decrypt_with_ad(b"", sealed) == b"text"

    @each_suite
    def test_associated_data_is_bound(self, suite: Suite) -> None:
        sealed = CipherState(suite, KEY).encrypt_with_ad(b"one", b"text")
        with pytest.raises(RemoteProtocolError):
            CipherState(suite, KEY).decrypt_with_ad(b"other", sealed)

    @each_suite
    @pytest.mark.parametrize("size", [0, TAG_SIZE - 1])
    def test_shorter_than_a_tag(self, suite: Suite, size: int) -> None:
        with pytest.raises(RemoteProtocolError):
            CipherState(suite, KEY).decrypt_with_ad(b"", bytes(size))

    @each_suite
    @pytest.mark.parametrize("size", [4 + TAG_SIZE - 1, 4 + TAG_SIZE + 1])
    def test_buffer_of_wrong_size_is_our_bug(self, suite: Suite, size: int) -> None:
        cipher = CipherState(suite, KEY)
        with pytest.raises(ValueError):
            cipher.seal_into(b"text", memoryview(bytearray(size)))
        assert cipher.nonce == 0
        sealed = cipher.encrypt_with_ad(b"", b"text")
        with pytest.raises(ValueError):
            CipherState(suite, KEY).open_into(sealed, memoryview(bytearray(size - TAG_SIZE)))

    @each_suite
    def test_nonces_run_out(self, suite: Suite) -> None:
        sender, receiver = CipherState(suite, KEY), CipherState(suite, KEY)
        sender.nonce = receiver.nonce = LAST_NONCE
        out = memoryview(bytearray(4 + TAG_SIZE))
        sender.seal_into(b"last", out)
        receiver.open_into(out, memoryview(bytearray(4)))
        uses: list[Callable[[], object]] = [
            lambda: sender.seal_into(b"more", out),
            lambda: sender.encrypt_with_ad(b"", b"more"),
            lambda: receiver.open_into(out, memoryview(bytearray(4))),
            lambda: receiver.decrypt_with_ad(b"", out),
        ]
        for use in uses:
            with pytest.raises(LocalProtocolError, match="used up"):
                use()

    @each_suite
    def test_rekey_as_specified(self, suite: Suite) -> None:
        aead = AESGCM if suite is Suite.AESGCM else ChaCha20Poly1305
        derived = aead(KEY).encrypt(bytes(4) + b"\xff" * 8, bytes(32), b"")[:32]
        cipher, expected = CipherState(suite, KEY), CipherState(suite, derived)
        cipher.nonce = expected.nonce = 7
        cipher.rekey()
        assert cipher.nonce == 7
        out = memoryview(bytearray(4 + TAG_SIZE))
        cipher.seal_into(b"text", out)
        assert out == expected.encrypt_with_ad(b"", b"text")


def test_feature_is_detected() -> None:
    assert hasattr(AESGCM, "encrypt_into") == noise._HAS_INTO


class TestHandshake:
    @each_suite
    def test_both_sides_agree(self, suite: Suite) -> None:
        agent, relay = StaticKey.generate(), StaticKey.generate()
        initiator, responder = pair(suite, agent=agent, relay=relay)
        assert initiator.remote_static == relay.public
        for done, (writer, reader, payload) in enumerate(
            [
                (initiator, responder, b""),
                (responder, initiator, b"two"),
                (initiator, responder, b"three"),
            ]
        ):
            assert not writer.finished
            assert not reader.finished
            assert responder.remote_static is None, f"known after {done} messages"
            assert reader.read_message(bytearray(writer.write_message(payload))) == payload
        assert initiator.finished
        assert responder.finished
        assert responder.remote_static == agent.public
        assert initiator.handshake_hash == responder.handshake_hash

        (i_send, i_receive), (r_send, r_receive) = initiator.split(), responder.split()
        assert r_receive.decrypt_with_ad(b"", i_send.encrypt_with_ad(b"", b"up")) == b"up"
        assert i_receive.decrypt_with_ad(b"", r_send.encrypt_with_ad(b"", b"down")) == b"down"

    def test_no_two_are_alike(self) -> None:
        agent, relay = StaticKey.generate(), StaticKey.generate()
        first, second = pair(agent=agent, relay=relay), pair(agent=agent, relay=relay)
        exchange(*first)
        exchange(*second)
        assert first[0].handshake_hash != second[0].handshake_hash

    def test_sizes_on_the_wire(self) -> None:
        initiator, responder = pair()
        for writer, reader, size in (
            (initiator, responder, 48),
            (responder, initiator, 48),
            (initiator, responder, 64),
        ):
            message = writer.write_message()
            assert len(message) == size
            reader.read_message(message)

    @pytest.mark.parametrize("pinned", [None, StaticKey.generate().public], ids=["none", "key"])
    def test_only_the_initiator_pins(self, pinned: bytes | None) -> None:
        with pytest.raises(LocalProtocolError):
            Handshake(
                suite=Suite.AESGCM,
                prologue=b"",
                initiator=pinned is None,
                static=StaticKey.generate(),
                remote_static=pinned,
            )

    @pytest.mark.parametrize("size", [1, 31, 33])
    def test_pinned_key_of_wrong_length(self, size: int) -> None:
        with pytest.raises(LocalProtocolError):
            pair(pinned=bytes(size))

    @pytest.mark.parametrize("steps", [0, 1, 2, 3])
    def test_out_of_turn_is_our_bug(self, steps: int) -> None:
        """Every call in every state: only the one whose turn it is works."""
        for side in (0, 1):
            for writing in (True, False):
                sides = pair()
                exchange(*sides, steps=steps)
                if steps < 3 and writing == (steps % 2 == side):
                    continue
                call = sides[side].write_message if writing else sides[side].read_message
                with pytest.raises(LocalProtocolError):
                    call(bytes(64))
                # Being called wrongly has no effect.
                exchange_rest(sides, steps)
                assert sides[0].handshake_hash == sides[1].handshake_hash

    @pytest.mark.parametrize("steps", [0, 1, 2])
    def test_nothing_to_have_before_the_end(self, steps: int) -> None:
        sides = pair()
        exchange(*sides, steps=steps)
        for side in sides:
            with pytest.raises(LocalProtocolError):
                side.split()
            with pytest.raises(LocalProtocolError):
                _ = side.handshake_hash

    @each_suite
    @pytest.mark.parametrize("step", [0, 1, 2])
    def test_cut_at_every_length_and_trailing_data(self, suite: Suite, step: int) -> None:
        agent, relay = StaticKey.generate(), StaticKey.generate()
        sides = pair(suite, agent=agent, relay=relay)
        exchange(*sides, steps=step)
        message = sides[step % 2].write_message(b"payload")
        for broken in [message[:size] for size in range(len(message))] + [message + b"\0"]:
            fresh = pair(suite, agent=agent, relay=relay)
            exchange(*fresh, steps=step)
            with pytest.raises(RemoteProtocolError):
                fresh[1 - step % 2].read_message(broken)

    @each_suite
    @pytest.mark.parametrize("step", [0, 1, 2])
    def test_every_changed_byte_is_noticed(self, suite: Suite, step: int) -> None:
        agent, relay = StaticKey.generate(), StaticKey.generate()
        size = len(message_at(suite, agent, relay, step)[0])
        for position in range(size):
            message, reader = message_at(suite, agent, relay, step)
            broken = bytearray(message)
            # Not the top bit, which X25519 ignores: that one changes only the hash.
            broken[position] ^= 0x01
            with pytest.raises(RemoteProtocolError):
                reader.read_message(broken)
        message, reader = message_at(suite, agent, relay, step)
        broken = bytearray(message)
        broken[KEY_SIZE - 1] ^= 0x80
        with pytest.raises(RemoteProtocolError):
            reader.read_message(broken)

    @pytest.mark.parametrize("step", [0, 1, 2])
    def test_failure_is_final(self, step: int) -> None:
        message, reader = message_at(Suite.AESGCM, StaticKey.generate(), StaticKey.generate(), step)
        with pytest.raises(RemoteProtocolError):
            reader.read_message(message[:-1])
        for use in (lambda: reader.read_message(message), reader.write_message, reader.split):
            with pytest.raises(LocalProtocolError):
                use()
        assert not reader.finished

    def test_an_unproved_key_is_not_shown(self) -> None:
        message, reader = message_at(Suite.AESGCM, StaticKey.generate(), StaticKey.generate(), 2)
        # The key itself decrypts; the payload, sealed under "se", does not.
        with pytest.raises(RemoteProtocolError):
            reader.read_message(message[:-1])
        assert reader.remote_static is None

    @pytest.mark.parametrize("point", LOW_ORDER)
    def test_low_order_ephemeral(self, point: bytes) -> None:
        _, responder = pair()
        with pytest.raises(RemoteProtocolError, match="low-order"):
            responder.read_message(point + bytes(TAG_SIZE))
        initiator, _ = pair()
        initiator.write_message()
        with pytest.raises(RemoteProtocolError, match="low-order"):
            initiator.read_message(point + bytes(TAG_SIZE))

    @pytest.mark.parametrize("point", LOW_ORDER)
    def test_low_order_static(self, point: bytes) -> None:
        class Forged(StaticKey):
            def __init__(self) -> None:
                super().__init__(StaticKey.generate()._key)
                self.public = point  # type: ignore[misc] # what an attacker would do

        initiator, responder = pair(agent=Forged())
        exchange(initiator, responder, steps=2)
        with pytest.raises(RemoteProtocolError, match="low-order"):
            responder.read_message(initiator.write_message())

    @pytest.mark.parametrize("point", LOW_ORDER)
    def test_low_order_pinned_key(self, point: bytes) -> None:
        initiator, _ = pair(pinned=point)
        with pytest.raises(RemoteProtocolError, match="low-order"):
            initiator.write_message()

    def test_wrong_relay_key(self) -> None:
        initiator, responder = pair(pinned=StaticKey.generate().public)
        with pytest.raises(RemoteProtocolError):
            responder.read_message(initiator.write_message())

    def test_other_prologue(self) -> None:
        initiator, _ = pair(relay=(relay := StaticKey.generate()))
        responder = Handshake(
            suite=Suite.AESGCM, prologue=PROLOGUE + b"!", initiator=False, static=relay
        )
        with pytest.raises(RemoteProtocolError):
            responder.read_message(initiator.write_message())

    def test_other_suite(self) -> None:
        initiator, _ = pair(Suite.AESGCM, relay=(relay := StaticKey.generate()))
        _, responder = pair(Suite.CHACHAPOLY, relay=relay)
        with pytest.raises(RemoteProtocolError):
            responder.read_message(initiator.write_message())

    def test_replayed_message_3(self) -> None:
        agent, relay = StaticKey.generate(), StaticKey.generate()
        recorded, _ = message_at(Suite.AESGCM, agent, relay, 2)
        _, reader = message_at(Suite.AESGCM, agent, relay, 2)
        with pytest.raises(RemoteProtocolError):
            reader.read_message(recorded)

    def test_largest_message(self) -> None:
        initiator, responder = pair()
        payload = bytes(MAX_MESSAGE - KEY_SIZE - TAG_SIZE)
        message = initiator.write_message(payload)
        assert len(message) == MAX_MESSAGE
        assert responder.read_message(message) == payload

    def test_larger_than_the_largest_message(self) -> None:
        initiator, responder = pair()
        with pytest.raises(LocalProtocolError):
            initiator.write_message(bytes(MAX_MESSAGE - KEY_SIZE - TAG_SIZE + 1))
        with pytest.raises(RemoteProtocolError, match="65536"):
            responder.read_message(bytes(MAX_MESSAGE + 1))

    @given(data=st.binary(max_size=256), step=st.sampled_from([0, 1, 2]))
    def test_arbitrary_bytes(self, data: bytes, step: int) -> None:
        _, reader = message_at(Suite.CHACHAPOLY, AGENT, RELAY, step)
        with pytest.raises(RemoteProtocolError):
            reader.read_message(data)


AGENT, RELAY = StaticKey.generate(), StaticKey.generate()


def message_at(
    suite: Suite, agent: StaticKey, relay: StaticKey, step: int
) -> tuple[bytes, Handshake]:
    """The message of this step from a fresh handshake, and the side that is about to read it."""
    sides = pair(suite, agent=agent, relay=relay)
    exchange(*sides, steps=step)
    return sides[step % 2].write_message(b"payload"), sides[1 - step % 2]


def exchange_rest(sides: tuple[Handshake, Handshake], steps: int) -> None:
    for step in range(steps, 3):
        sides[1 - step % 2].read_message(sides[step % 2].write_message())
