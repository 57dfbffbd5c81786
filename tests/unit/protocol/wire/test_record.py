from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.wire import noise
from protocol.wire.noise import TAG_SIZE, CipherState, Suite
from protocol.wire.record import (
    MAX_CIPHERTEXT,
    MAX_FRAME,
    MAX_RECORD,
    MIN_CIPHERTEXT,
    MIN_FRAME,
    RECORD_OVERHEAD,
    REKEY_INTERVAL,
    Opener,
    Sealer,
    lazy_area,
)

KEY = bytes(range(32))


def cipher(suite: Suite = Suite.AESGCM) -> CipherState:
    return CipherState(suite, KEY)


def make_sealer(suite: Suite = Suite.AESGCM, *, rekey_interval: int = REKEY_INTERVAL) -> Sealer:
    return Sealer(cipher(suite), rekey_interval=rekey_interval)


def make_opener(
    suite: Suite = Suite.AESGCM,
    *,
    capacity: int = MAX_RECORD,
    rekey_interval: int = REKEY_INTERVAL,
) -> Opener:
    return Opener(cipher(suite), capacity=capacity, rekey_interval=rekey_interval)


def seal(sealer: Sealer, frame: bytes) -> bytes:
    out = memoryview(bytearray(MAX_RECORD))
    return bytes(out[: sealer.seal_into(frame, out)])


def receive(opener: Opener, data: bytes) -> int:
    """Like recv_into: as much as fits."""
    space = opener.space()
    count = min(len(space), len(data))
    space[:count] = data[:count]
    opener.received(count)
    return count


def drain(opener: Opener) -> list[bytes]:
    frames = []
    while (frame := opener.next_frame()) is not None:
        frames.append(bytes(frame))
    return frames


def feed(opener: Opener, data: bytes, *, chunk: int | None = None) -> list[bytes]:
    frames = []
    while data:
        count = receive(opener, data[:chunk])
        data = data[count:]
        frames += drain(opener)
    return frames


def test_numbers_of_the_wire() -> None:
    assert (MAX_CIPHERTEXT, MAX_FRAME, MAX_RECORD) == (65535, 65519, 65537)
    assert (MIN_FRAME, MIN_CIPHERTEXT, RECORD_OVERHEAD) == (5, 21, 18)
    assert REKEY_INTERVAL == 2**20


class TestSealer:
    @pytest.mark.parametrize("suite", list(Suite))
    @pytest.mark.parametrize("size", [MIN_FRAME, MIN_FRAME + 1, MAX_FRAME - 1, MAX_FRAME])
    def test_layout(self, suite: Suite, size: int) -> None:
        frame = bytes(size)
        out = memoryview(bytearray(b"\xaa" * (MAX_RECORD + 3)))
        length = make_sealer(suite).seal_into(frame, out)
        sealed = cipher(suite).encrypt_with_ad(b"", frame)
        assert out[:length] == (size + TAG_SIZE).to_bytes(2, "big") + sealed
        assert length == size + RECORD_OVERHEAD
        assert set(out[length:]) == {0xAA}

    def test_any_buffer_and_an_exact_fit(self) -> None:
        expected = seal(make_sealer(), b"frame")
        for frame in (b"frame", bytearray(b"frame"), memoryview(b"a frame")[2:]):
            out = memoryview(bytearray(len(expected)))
            assert make_sealer().seal_into(frame, out) == len(expected)
            assert out == expected

    @pytest.mark.parametrize("size", [0, MIN_FRAME - 1, MAX_FRAME + 1])
    def test_frame_out_of_bounds_is_our_bug(self, size: int) -> None:
        with pytest.raises(LocalProtocolError, match="frame of"):
            make_sealer().seal_into(bytes(size), memoryview(bytearray(2 * MAX_RECORD)))

    def test_too_little_room_is_our_bug(self) -> None:
        sealer = make_sealer()
        out = memoryview(bytearray(MIN_FRAME + RECORD_OVERHEAD - 1))
        with pytest.raises(LocalProtocolError, match="in a buffer of 22"):
            sealer.seal_into(b"frame", out)
        assert not any(out)
        # The failure used no nonce.
        assert drain_all(seal(sealer, b"frame")) == [b"frame"]


def drain_all(data: bytes) -> list[bytes]:
    return feed(make_opener(), data)


def drain_views(opener: Opener) -> list[memoryview]:
    views = []
    while (frame := opener.next_frame()) is not None:
        views.append(frame)
    return views


class TestOpener:
    @pytest.mark.parametrize("suite", list(Suite))
    @pytest.mark.parametrize("chunk", [None, 1, 2, 3, 7, 4096])
    def test_frames_come_out_however_they_arrive(self, suite: Suite, chunk: int | None) -> None:
        sealer = make_sealer(suite)
        frames = [bytes([n]) * (MIN_FRAME + n * n) for n in range(20)]
        data = b"".join(seal(sealer, frame) for frame in frames)
        assert feed(make_opener(suite), data, chunk=chunk) == frames

    @pytest.mark.parametrize("into", [True, False])
    @pytest.mark.parametrize("size", [MIN_FRAME, MAX_FRAME])
    def test_sizes_at_the_edge(
        self, monkeypatch: pytest.MonkeyPatch, into: bool, size: int
    ) -> None:
        if not into:
            monkeypatch.setattr(noise, "_HAS_INTO", False)
        sealer, opener = make_sealer(), make_opener()
        for n in range(3):
            frame = bytes([n]) * size
            assert feed(opener, seal(sealer, frame)) == [frame]

    @given(
        sizes=st.lists(
            st.integers(MIN_FRAME, 300) | st.integers(MAX_FRAME - 300, MAX_FRAME), max_size=4
        ),
        pieces=st.lists(st.integers(1, 40) | st.integers(1, MAX_RECORD), max_size=10),
        extra=st.integers(0, 2 * MAX_RECORD),
    )
    def test_any_sizes_in_any_pieces(self, sizes: list[int], pieces: list[int], extra: int) -> None:
        frames = [bytes([n]) * size for n, size in enumerate(sizes)]
        sealer = make_sealer(rekey_interval=2)
        opener = make_opener(capacity=MAX_RECORD + extra, rekey_interval=2)
        rest = b"".join(seal(sealer, frame) for frame in frames)
        opened = []
        for piece in pieces:
            if rest:
                rest = rest[receive(opener, rest[:piece]) :]
                opened += drain(opener)
        opened += feed(opener, rest)
        assert opened == frames

    def test_nothing_received(self) -> None:
        opener = make_opener()
        assert opener.next_frame() is None
        assert len(opener.space()) == MAX_RECORD
        opener.received(0)
        assert opener.next_frame() is None

    def test_all_frames_received_together_are_valid_together(self) -> None:
        sealer, opener = make_sealer(), make_opener()
        receive(opener, seal(sealer, b"first") + seal(sealer, b"second"))
        assert drain_views(opener) == [b"first", b"second"]

    def test_a_frame_is_valid_until_space_is_asked_for(self) -> None:
        sealer, opener = make_sealer(), make_opener()
        receive(opener, seal(sealer, b"first"))
        first = opener.next_frame()
        receive(opener, seal(sealer, b"second"))
        assert first == b"first"
        assert opener.next_frame() == b"second"
        assert first == b"secon"

    def test_a_full_area_of_records_is_opened_at_once(self) -> None:
        sealer, opener = make_sealer(), make_opener(capacity=3 * MAX_RECORD)
        frames = [bytes([number]) * MAX_FRAME for number in range(3)]
        for frame in frames:
            receive(opener, seal(sealer, frame))
        assert drain_views(opener) == frames

    def test_openers_may_share_the_lazy_area(self) -> None:
        area = lazy_area(8 * MAX_RECORD)
        one = Opener(cipher(), capacity=MAX_RECORD, plaintext=area)
        other = Opener(cipher(), capacity=MAX_RECORD, plaintext=area)
        for opener, frame in ((one, b"first"), (other, b"other")):
            receive(opener, seal(make_sealer(), frame))
            assert opener.next_frame() == frame == area[:5]

    @pytest.mark.parametrize("size", range(MIN_CIPHERTEXT))
    def test_short_length_is_refused_at_once(self, size: int) -> None:
        opener = make_opener()
        receive(opener, size.to_bytes(2, "big"))
        with pytest.raises(RemoteProtocolError, match="at least 21"):
            opener.next_frame()

    @pytest.mark.parametrize("size", [MIN_CIPHERTEXT, MAX_CIPHERTEXT])
    def test_lengths_that_may_be(self, size: int) -> None:
        opener = make_opener()
        receive(opener, size.to_bytes(2, "big"))
        assert opener.next_frame() is None
        for missing in range(size, 0, -4096):
            assert opener.next_frame() is None
            receive(opener, bytes(min(4096, missing)))
        with pytest.raises(RemoteProtocolError, match="authentication"):
            opener.next_frame()

    def test_every_changed_bit_is_noticed(self) -> None:
        record = seal(make_sealer(), b"frame")
        for bit in range(16, 8 * len(record)):
            broken = bytearray(record)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises(RemoteProtocolError, match="authentication"):
                feed(make_opener(), bytes(broken))

    def test_repeated_lost_and_moved_records_are_noticed(self) -> None:
        sealer = make_sealer()
        one, two, three = (seal(sealer, frame) for frame in (b"one..", b"two..", b"three"))
        for broken in (one + one, one + three, two + one):
            with pytest.raises(RemoteProtocolError, match="authentication"):
                feed(make_opener(), broken)

    @given(st.binary(min_size=1, max_size=200))
    def test_arbitrary_bytes(self, data: bytes) -> None:
        for chunk in (None, 1):
            with contextlib.suppress(RemoteProtocolError):
                assert feed(make_opener(), data, chunk=chunk) == []


class TestSpace:
    def test_capacity_below_a_record(self) -> None:
        with pytest.raises(LocalProtocolError, match="65537"):
            make_opener(capacity=MAX_RECORD - 1)

    def test_starts_over_when_all_is_opened(self) -> None:
        opener = make_opener()
        feed(opener, seal(make_sealer(), b"frame"))
        assert len(opener.space()) == MAX_RECORD

    def test_stays_in_place_while_a_record_fits_behind(self) -> None:
        sealer, opener = make_sealer(), make_opener(capacity=2 * MAX_RECORD)
        record = seal(sealer, b"frame")
        feed(opener, record + b"\0")
        assert len(opener.space()) == 2 * MAX_RECORD - len(record) - 1

    def test_moves_the_rest_to_the_front_when_it_does_not(self) -> None:
        sealer, opener = make_sealer(), make_opener(capacity=2 * MAX_RECORD)
        first, second = seal(sealer, bytes(MAX_FRAME)), seal(sealer, bytes(MAX_FRAME))
        feed(opener, first + second[:1])
        assert len(opener.space()) == 2 * MAX_RECORD - 1
        assert feed(opener, second[1:]) == [bytes(MAX_FRAME)]

    def test_a_started_record_always_fits(self) -> None:
        sealer, opener = make_sealer(), make_opener()
        largest = bytes(MAX_FRAME)
        data = b"".join(seal(sealer, frame) for frame in (b"frame", largest, b"frame", largest))
        assert feed(opener, data) == [b"frame", largest, b"frame", largest]

    def test_full_of_frames_nobody_took(self) -> None:
        sealer, opener = make_sealer(), make_opener()
        receive(opener, seal(sealer, bytes(MAX_FRAME)))
        with pytest.raises(LocalProtocolError, match="waiting"):
            opener.space()
        assert drain(opener) == [bytes(MAX_FRAME)]
        assert len(opener.space()) == MAX_RECORD

    @pytest.mark.parametrize("count", [-1, MAX_RECORD + 1])
    def test_received_outside_the_space(self, count: int) -> None:
        opener = make_opener()
        opener.space()
        with pytest.raises(LocalProtocolError, match="less space"):
            opener.received(count)


class TestRekey:
    @pytest.mark.parametrize("suite", list(Suite))
    def test_after_each_interval(self, suite: Suite) -> None:
        sealer, opener = make_sealer(suite, rekey_interval=3), make_opener(suite, rekey_interval=3)
        expected = cipher(suite)
        for n in range(10):
            if n in (3, 6, 9):
                expected.rekey()
            frame = b"frame %d" % n
            record = seal(sealer, frame)
            assert record[2:] == expected.encrypt_with_ad(b"", frame)
            assert feed(opener, record) == [frame]

    def test_a_side_that_does_not_is_noticed(self) -> None:
        sealer, opener = make_sealer(rekey_interval=3), make_opener()
        feed(opener, b"".join(seal(sealer, b"frame") for _ in range(3)))
        with pytest.raises(RemoteProtocolError, match="authentication"):
            feed(opener, seal(sealer, b"frame"))

    def test_the_real_interval(self) -> None:
        sending, receiving, expected = cipher(), cipher(), cipher()
        for state in (sending, receiving, expected):
            state.nonce = REKEY_INTERVAL - 1
        sealer, opener = Sealer(sending), Opener(receiving, capacity=MAX_RECORD)
        for frame in (b"last under the first key", b"first under the second key"):
            record = seal(sealer, frame)
            assert record[2:] == expected.encrypt_with_ad(b"", frame)
            assert feed(opener, record) == [frame]
            expected.rekey()
