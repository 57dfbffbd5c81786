"""A second agent, written from docs/protocol.md alone, against the real relay.

Not one import from `protocol`: what this file needs beyond the document, the document lacks. It
keeps to what an agent cannot do without (one link, no resume, no rekey) and sends bytes as the
document spells them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, Final

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from tests.support.blocking_sockets import receive, receive_to_end, visit, was_reset
from tests.support.house import House
from tests.support.ports import LOOPBACK, free_port
from tests.support.waiting import LIMIT

SUITES: Final[dict[int, tuple[bytes, Any, str]]] = {
    1: (b"Noise_XK_25519_AESGCM_SHA256", AESGCM, ">4xQ"),
    2: (b"Noise_XK_25519_ChaChaPoly_SHA256", ChaCha20Poly1305, "<4xQ"),
}
PUBLISH, PUBLISHED, REFUSED, OPEN, DATA, WINDOW, FIN, RESET = 1, 2, 3, 5, 6, 7, 8, 9
WELCOME, DENIED, ACK, PING, PONG, CLOSE = 0x41, 0x42, 0x43, 0x44, 0x45, 0x46

Frame = tuple[int, int, bytes]


class SecondAgent:
    """One link of one session, after `hello` welcomed."""

    def __init__(self, invitation: str, *, suite: int, version: int = 1) -> None:
        text = invitation.removeprefix("relay1_").upper()
        body = base64.b32decode(text + "=" * (-len(text) % 8))
        assert hashlib.sha256(b"relay1_" + body[:-4]).digest()[:4] == body[-4:]
        self.relay_key, self.token, size = body[:32], body[32:48], body[49]
        host, port = body[50 : 50 + size], body[50 + size : 52 + size]
        self._sock = socket.create_connection((host.decode(), *struct.unpack(">H", port)), LIMIT)
        self._name, self._aead, self._nonce = SUITES[suite]
        self._preface = b"SRLY" + bytes([version, suite])
        self.received = 0

    def close(self) -> None:
        self._sock.close()

    # Noise XK, as the initiator

    def handshake(self, key: X25519PrivateKey, hello: dict[str, Any]) -> Frame:
        """The relay's answer: its first frame, or the denial of message 2."""
        ephemeral = X25519PrivateKey.generate()
        self._chain = self._hash = self._name.ljust(32, b"\0")
        for known in (self._preface, self.relay_key, ephemeral.public_key().public_bytes_raw()):
            self._mix(known)
        self._mix_key(ephemeral, self.relay_key)
        first = ephemeral.public_key().public_bytes_raw() + self._encrypt(b"")
        self._sock.sendall(self._preface + struct.pack(">H", len(first)) + first)
        second = receive(self._sock, struct.unpack(">H", receive(self._sock, 2))[0])
        self._mix(second[:32])
        self._mix_key(ephemeral, second[:32])
        denial = self._decrypt(second[32:])
        if denial:
            return DENIED, 0, denial
        shown = self._encrypt(key.public_key().public_bytes_raw(), nonce=1)
        self._mix_key(key, second[:32])
        third = shown + self._encrypt(msgpack.packb(hello))
        self._sock.sendall(struct.pack(">H", len(third)) + third)
        self._sealing, self._opening = map(self._aead, self._hkdf(b""))
        self._sealed = self._opened = 0
        return self.receive()

    def _mix(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def _hkdf(self, secret: bytes) -> tuple[bytes, bytes]:
        root = hmac.digest(self._chain, secret, "sha256")
        first = hmac.digest(root, b"\1", "sha256")
        return first, hmac.digest(root, first + b"\2", "sha256")

    def _mix_key(self, mine: X25519PrivateKey, theirs: bytes) -> None:
        shared = mine.exchange(X25519PublicKey.from_public_bytes(theirs))
        self._chain, key = self._hkdf(shared)
        self._cipher = self._aead(key)

    def _encrypt(self, plain: bytes, nonce: int = 0) -> bytes:
        sealed: bytes = self._cipher.encrypt(struct.pack(self._nonce, nonce), plain, self._hash)
        self._mix(sealed)
        return sealed

    def _decrypt(self, sealed: bytes) -> bytes:
        plain: bytes = self._cipher.decrypt(struct.pack(self._nonce, 0), sealed, self._hash)
        self._mix(sealed)
        return plain

    # Records and frames

    def send(self, kind: int, stream: int, body: bytes) -> None:
        nonce = struct.pack(self._nonce, self._sealed)
        self._sealed += 1
        sealed = self._sealing.encrypt(nonce, struct.pack(">BI", kind, stream) + body, b"")
        self._sock.sendall(struct.pack(">H", len(sealed)) + sealed)

    def receive(self) -> Frame:
        sealed = receive(self._sock, struct.unpack(">H", receive(self._sock, 2))[0])
        frame = self._opening.decrypt(struct.pack(self._nonce, self._opened), sealed, b"")
        self._opened += 1
        kind, stream = struct.unpack(">BI", frame[:5])
        self.received += kind < 0x40
        return kind, stream, frame[5:]

    def expect(self, kind: int) -> tuple[int, bytes]:
        """Stream and body of the next frame of this kind; everything before it is acked."""
        while True:
            got, stream, body = self.receive()
            if got == PING:
                self.send(PONG, 0, struct.pack(">Q", self.received) + body[8:])
            elif got < 0x40:
                self.send(ACK, 0, struct.pack(">Q", self.received))
            if got == kind:
                return stream, body
            assert got in (ACK, PING, PONG, WINDOW), f"frame {got:#04x} instead of {kind:#04x}"


def hello(**more: Any) -> dict[str, Any]:
    return {
        "instance": os.urandom(16),
        "epoch": 1,
        "software": "second",
        "features": [],
        "limits": {"streams": 8, "stream_window": 65536, "session_window": 65536},
        **more,
    }


@pytest.fixture(params=SUITES)
def second(request: pytest.FixtureRequest, house: House) -> Iterator[tuple[SecondAgent, int]]:
    """A second agent, enrolled and attached, and the one port it has published."""
    port = free_port()
    agent = SecondAgent(house.relay.invite(f"second{request.param}", port), suite=request.param)
    try:
        kind, _, body = agent.handshake(X25519PrivateKey.generate(), hello(token=agent.token))
        assert kind == WELCOME
        welcome = msgpack.unpackb(body)
        assert welcome["name"] == f"second{request.param}"
        assert (welcome["ports"][0], welcome["resumed"], welcome["received"]) == (port, False, 0)
        agent.send(PUBLISH, 0, msgpack.packb({"id": 1, "service": "echo", "port": port}))
        assert msgpack.unpackb(agent.expect(PUBLISHED)[1]) == {"id": 1, "port": port}
        yield agent, port
    finally:
        agent.send(CLOSE, 0, b"\1")
        agent.close()


def test_visitors_reach_it(second: tuple[SecondAgent, int]) -> None:
    agent, port = second
    for expected in (1, 3):
        with visit(port) as visitor:
            source = visitor.getsockname()
            stream, opened = agent.expect(OPEN)
            assert stream == expected
            assert msgpack.unpackb(opened) == {"id": 1, "host": LOOPBACK, "port": source[1]}
            visitor.sendall(b"ping")
            assert agent.expect(DATA) == (stream, b"ping")
            agent.send(DATA, stream, b"pong")
            agent.send(FIN, stream, b"")
            assert receive_to_end(visitor) == b"pong"
            # The other direction is open still.
            visitor.sendall(b"bye")
            assert agent.expect(DATA) == (stream, b"bye")
            visitor.shutdown(socket.SHUT_WR)
            assert agent.expect(FIN) == (stream, b"")


def test_credit_is_what_lets_a_visitor_send_on(second: tuple[SecondAgent, int]) -> None:
    agent, port = second
    with visit(port) as visitor:
        stream, _ = agent.expect(OPEN)
        visitor.sendall(bytes(80_000))
        size = 0
        while size < 65536:
            size += len(agent.expect(DATA)[1])
        assert size == 65536
        for window in (0, stream):
            agent.send(WINDOW, window, struct.pack(">I", 65536))
        while size < 80_000:
            size += len(agent.expect(DATA)[1])
        assert size == 80_000
        agent.send(RESET, stream, b"\1")
        assert was_reset(visitor)


def test_a_key_that_nobody_enrolled_is_told_so(house: House) -> None:
    agent = SecondAgent(house.invitation, suite=1)
    kind, _, body = agent.handshake(X25519PrivateKey.generate(), hello())
    agent.close()
    assert (kind, msgpack.unpackb(body)["code"]) == (DENIED, 2)


def test_another_version_is_told_so_in_message_2(house: House) -> None:
    agent = SecondAgent(house.invitation, suite=2, version=77)
    kind, _, body = agent.handshake(X25519PrivateKey.generate(), hello())
    agent.close()
    assert (kind, msgpack.unpackb(body)["code"]) == (DENIED, 1)
