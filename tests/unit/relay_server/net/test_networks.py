from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_server.net.networks import Networks, parse_network, parse_networks


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("203.0.113.9", "203.0.113.9/32"),
        ("203.0.113.0/24", "203.0.113.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
    ],
)
def test_an_address_or_a_network(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    "text", ["", "/24", "localhost", "203.0.113", "203.0.113.0/33", "2001:db8::/129", "1.2.3.4/x"]
)
def test_anything_else_is_neither(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected an address or a network such as ") as caught:
        parse_network(text)
    assert str(caught.value).endswith(f", not {text!r}")


@pytest.mark.parametrize(
    ("text", "network"),
    [("203.0.113.9/24", "203.0.113.0/24"), ("2001:db8::1/32", "2001:db8::/32")],
)
def test_an_address_with_a_prefix_is_asked_about(text: str, network: str) -> None:
    with pytest.raises(ValueError, match=rf"^expected {network}, if that is what '{text}'"):
        parse_network(text)


@pytest.mark.parametrize("text", ["::ffff:203.0.113.0/120", "::ffff:203.0.113.9", "::ffff:0:0/96"])
def test_ipv4_in_the_dress_of_ipv6_would_match_nobody(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected an IPv4 network as such"):
        parse_network(text)


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("203.0.113.0", True),
        ("203.0.113.255", True),
        ("203.0.114.0", False),
        ("203.0.112.255", False),
        ("198.51.100.7", True),
        ("198.51.100.8", False),
        ("2001:db8::", True),
        ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", True),
        ("2001:db9::", False),
        ("2001:db8::1%eth0", True),
        ("::cb00:7100", False),  # 203.0.113.0 as a number
    ],
)
def test_what_is_inside(host: str, inside: bool) -> None:
    networks = parse_networks(["203.0.113.0/24", "198.51.100.7", "2001:db8::/32"])
    assert (host in networks) is inside


def test_in_none_is_nobody() -> None:
    assert not Networks()
    assert "203.0.113.9" not in Networks()


def test_as_a_value() -> None:
    one, same = parse_networks(["10.0.0.0/8", "::1"]), parse_networks(["::1", "10.0.0.0/8"])
    assert one == same
    assert hash(one) == hash(same)
    assert one != parse_networks(["10.0.0.0/8"])
    assert one != {"10.0.0.0/8"}
    assert repr(one) == "Networks(10.0.0.0/8, ::1/128)"
    assert len(one) == 2


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=20),
    st.integers(0, 2**32 - 1),
)
def test_as_the_standard_library_says(numbers: list[tuple[int, int]], number: int) -> None:
    networks = [
        ipaddress.IPv4Network((address, prefix), strict=False) for address, prefix in numbers
    ]
    host = ipaddress.IPv4Address(number)
    assert (str(host) in Networks(networks)) is any(host in network for network in networks)
