"""Records: what was sealed comes out, in whatever pieces it arrives; what was not, never does."""

from __future__ import annotations

from protocol.errors import RemoteProtocolError
from protocol.wire.noise import CipherState, Suite
from protocol.wire.record import (
    LENGTH,
    MAX_FRAME,
    MAX_RECORD,
    MIN_FRAME,
    RECORD_OVERHEAD,
    Opener,
    Sealer,
    lazy_area,
)
from tests.fuzz.choices import Choices

KEY = bytes(range(32))
# So few records that every input crosses a rekey.
REKEY_INTERVAL = 3
# Made once: mapping memory would cost more than all the rest.
_plaintext = lazy_area(8 * MAX_RECORD)


def fuzz_one(data: bytes) -> None:
    """suite, then frames (u16 length each) up to an empty one, then how the records arrive."""
    choices = Choices(data)
    suite = Suite.CHACHAPOLY if choices.flag() else Suite.AESGCM
    frames = []
    while frame := choices.framed():
        frames.append(frame.ljust(MIN_FRAME, b"\0")[:MAX_FRAME])
    wire, ends = _seal(frames, suite)
    genuine = bytes(wire)
    _tamper(choices, wire)
    opened, fault = _open(choices, wire, suite)
    whole = sum(end <= _same(genuine, wire) for end in ends)
    assert opened == frames[:whole], "what comes out is not what was sealed"
    assert fault is None or genuine != wire


def _seal(frames: list[bytes], suite: Suite) -> tuple[bytearray, list[int]]:
    """The records one after the other, and where each ends."""
    sealer = Sealer(CipherState(suite, KEY), rekey_interval=REKEY_INTERVAL)
    wire, ends = bytearray(), []
    for frame in frames:
        record = bytearray(len(frame) + RECORD_OVERHEAD)
        assert sealer.seal_into(frame, memoryview(record)) == len(record)
        wire += record
        ends.append(len(wire))
    return wire, ends


def _tamper(choices: Choices, wire: bytearray) -> None:
    at = choices.number(2) % (len(wire) + 1)
    match choices.below(4):
        case 1 if at < len(wire):
            wire[at] ^= choices.number()
        case 2:
            wire[at:at] = choices.framed()
        case 3:
            del wire[at : at + choices.number(2)]


def _same(one: bytes, other: bytearray) -> int:
    """How many bytes the two have in common before they differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _open(
    choices: Choices, wire: bytearray, suite: Suite
) -> tuple[list[bytes], RemoteProtocolError | None]:
    opener = Opener(
        CipherState(suite, KEY),
        capacity=MAX_RECORD,
        plaintext=_plaintext,
        rekey_interval=REKEY_INTERVAL,
    )
    opened: list[bytes] = []
    rest = memoryview(wire)
    while rest:
        space = opener.space()
        assert space, "no room for the rest of a record"
        size = min(len(space), len(rest), choices.number() or len(rest))
        space[:size] = rest[:size]
        rest = rest[size:]
        opener.received(size)
        try:
            while (frame := opener.next_frame()) is not None:
                assert MIN_FRAME <= len(frame) <= MAX_FRAME
                opened.append(bytes(frame))
        except RemoteProtocolError as error:
            return opened, error
    return opened, None


def record_seed(suite: Suite, frames: list[bytes], arrival: bytes) -> bytes:
    """The input that seals `frames` and goes on with `arrival`."""
    framed = b"".join(LENGTH.pack(len(frame)) + frame for frame in frames)
    return bytes([suite is Suite.CHACHAPOLY]) + framed + LENGTH.pack(0) + arrival
