from __future__ import annotations

import base64
import contextlib
import hashlib
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.wire.invitation import MAX_HOSTS, TOKEN_SIZE, Invitation, InvitationError

KEY = bytes(range(32))
TOKEN = bytes(range(100, 116))
HOSTS = (("vps.example.net", 7022), ("203.0.113.9", 443), ("2001:db8::1", 7022))
DAMAGED = "cut short or mistyped"

printable = st.characters(codec="utf-8").filter(lambda char: char.isprintable() and char != " ")
hosts = st.text(printable, min_size=1, max_size=40).filter(lambda host: len(host.encode()) <= 255)
invitations = st.builds(
    Invitation,
    hosts=st.lists(st.tuples(hosts, st.integers(1, 65535)), min_size=1, max_size=8).map(tuple),
    relay_key=st.binary(min_size=32, max_size=32),
    token=st.binary(min_size=16, max_size=16),
)


def make(
    *,
    hosts: tuple[tuple[str, int], ...] = HOSTS,
    relay_key: bytes = KEY,
    token: bytes = TOKEN,
) -> Invitation:
    return Invitation(hosts=hosts, relay_key=relay_key, token=token)


def written_by_hand(body: bytes) -> str:
    checksum = hashlib.sha256(b"relay1_" + body).digest()[:4]
    return "relay1_" + base64.b32encode(body + checksum).decode().rstrip("=").lower()


ONE_HOST = KEY + TOKEN + b"\x01\x03vps\x1b\x6e"


class TestEncode:
    def test_written_by_hand(self) -> None:
        invitation = make(hosts=(("vps", 7022),))
        assert invitation.encode() == written_by_hand(ONE_HOST)
        assert Invitation.decode(written_by_hand(ONE_HOST)) == invitation

    @given(invitations)
    def test_round_trip(self, invitation: Invitation) -> None:
        assert Invitation.decode(invitation.encode()) == invitation

    def test_is_one_word(self) -> None:
        text = make().encode()
        assert text.isascii()
        assert text.islower()
        assert text.replace("_", "").isalnum()

    def test_repr_keeps_the_token(self) -> None:
        text = repr(make())
        assert "token" not in text
        assert repr(TOKEN) not in text
        assert "vps.example.net" in text


class TestForgiven:
    def test_upper_case(self) -> None:
        assert Invitation.decode(make().encode().upper()) == make()

    def test_words_in_front(self) -> None:
        assert Invitation.decode("here it is:\n" + make().encode()) == make()

    @given(st.randoms(use_true_random=False))
    def test_white_space_anywhere(self, rng: random.Random) -> None:
        text = "".join(char + rng.choice(["", "", "\n", " ", "\r\n\t"]) for char in make().encode())
        assert Invitation.decode("  " + text) == make()


class TestRefused:
    @pytest.mark.parametrize(
        "text",
        ["", " \n", "relay", "relay1", "relay_abc", "relay0_abc", "relay01_abc", "ssh-rsa AAAA"],
    )
    def test_not_an_invitation(self, text: str) -> None:
        with pytest.raises(InvitationError, match="not an invitation: expected one line"):
            Invitation.decode(text)

    @pytest.mark.parametrize("prefix", ["relay2_", "relay10_", "RELAY2_"])
    def test_newer(self, prefix: str) -> None:
        with pytest.raises(InvitationError, match=f"newer kind .{prefix.lower()}"):
            Invitation.decode(prefix + "abc")

    def test_a_long_version_stays_one_short_line(self) -> None:
        with pytest.raises(InvitationError) as caught:
            Invitation.decode("relay" + "9" * 10_000 + "_")
        assert len(str(caught.value)) < 100

    def test_cut_at_every_length(self) -> None:
        text = make().encode()
        for size in range(len("relay1_"), len(text)):
            with pytest.raises(InvitationError, match=DAMAGED):
                Invitation.decode(text[:size])

    def test_every_mistyped_character(self) -> None:
        text = make().encode()
        for position in range(len("relay1_"), len(text)):
            for char in "a7180-é":
                if char != text[position]:
                    with pytest.raises(InvitationError, match=DAMAGED):
                        Invitation.decode(text[:position] + char + text[position + 1 :])

    def test_two_characters_swapped(self) -> None:
        text = make().encode()
        for position in range(len("relay1_"), len(text) - 1):
            one, other = text[position : position + 2]
            if one != other:
                swapped = text[:position] + other + one + text[position + 2 :]
                with pytest.raises(InvitationError, match=DAMAGED):
                    Invitation.decode(swapped)

    @pytest.mark.parametrize("trailing", ["a", "aaaaaaaa", "=", "relay1_"])
    def test_trailing_text(self, trailing: str) -> None:
        with pytest.raises(InvitationError, match=DAMAGED):
            Invitation.decode(make().encode() + trailing)

    @pytest.mark.parametrize(
        ("body", "case"),
        [
            (b"", "nothing"),
            (KEY, "no token"),
            (KEY + TOKEN, "no count"),
            (KEY + TOKEN + b"\x00", "no hosts"),
            (KEY + TOKEN + b"\x01", "host missing"),
            (ONE_HOST[:-3], "host cut short"),
            (ONE_HOST[:-1], "port cut short"),
            (ONE_HOST + b"\x00", "trailing byte"),
            (KEY + TOKEN + b"\x09" + ONE_HOST[49:] * 9, "nine hosts"),
            (KEY + TOKEN + b"\x01\x00\x1b\x6e", "empty host"),
            (KEY + TOKEN + b"\x01\x01\xff\x1b\x6e", "host not UTF-8"),
            (KEY + TOKEN + b"\x01\x01\n\x1b\x6e", "host not printable"),
            (KEY + TOKEN + b"\x01\x03a b\x1b\x6e", "host with a space"),
            (KEY + TOKEN + b"\x01\x01a\x00\x00", "port 0"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_malformed_behind_a_good_checksum(self, body: bytes, case: str) -> None:
        with pytest.raises(InvitationError, match=DAMAGED):
            Invitation.decode(written_by_hand(body))

    @given(st.text() | st.text().map("relay1_".__add__))
    @example("relay1_" + "é" * 8)
    @example("relay１_")
    def test_arbitrary_text(self, text: str) -> None:
        with pytest.raises(InvitationError) as caught:
            Invitation.decode(text)
        assert "\n" not in str(caught.value)

    @given(st.binary(max_size=120) | st.binary(max_size=60).map((KEY + TOKEN).__add__))
    def test_arbitrary_bytes_behind_a_good_checksum(self, body: bytes) -> None:
        text = written_by_hand(body)
        with contextlib.suppress(InvitationError):
            assert Invitation.decode(text).encode() == text


class TestBounds:
    @pytest.mark.parametrize("count", [1, MAX_HOSTS])
    def test_as_many_hosts(self, count: int) -> None:
        invitation = make(hosts=HOSTS[:1] * count)
        assert Invitation.decode(invitation.encode()) == invitation

    @pytest.mark.parametrize("count", [0, MAX_HOSTS + 1])
    def test_not_as_many_hosts(self, count: int) -> None:
        with pytest.raises(InvitationError, match=f"1 to 8 relay hosts, not {count}"):
            make(hosts=HOSTS[:1] * count)

    @pytest.mark.parametrize("host", ["a", "a" * 255, "ü" * 127, "::1"])
    def test_hosts(self, host: str) -> None:
        invitation = make(hosts=((host, 1),))
        assert Invitation.decode(invitation.encode()) == invitation

    @pytest.mark.parametrize("host", ["", "a" * 256, "ü" * 128, "a b", "a\n", "\u00a0", "\ud800"])
    def test_not_hosts(self, host: str) -> None:
        with pytest.raises(InvitationError, match="expected a host name") as caught:
            make(hosts=((host, 1),))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 150

    @pytest.mark.parametrize("port", [1, 65535])
    def test_ports(self, port: int) -> None:
        invitation = make(hosts=(("a", port),))
        assert Invitation.decode(invitation.encode()) == invitation

    @pytest.mark.parametrize("port", [-1, 0, 65536])
    def test_not_ports(self, port: int) -> None:
        with pytest.raises(InvitationError, match=f"1 to 65535, not {port}"):
            make(hosts=(("a", port),))

    @pytest.mark.parametrize("size", [31, 33])
    def test_relay_key_of_wrong_length(self, size: int) -> None:
        with pytest.raises(InvitationError, match="relay key of 32"):
            make(relay_key=bytes(size))

    @pytest.mark.parametrize("size", [TOKEN_SIZE - 1, TOKEN_SIZE + 1])
    def test_token_of_wrong_length(self, size: int) -> None:
        with pytest.raises(InvitationError, match="token of 16"):
            make(token=bytes(size))
