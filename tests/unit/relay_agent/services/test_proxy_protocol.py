"""Against bytes that HAProxy itself wrote, examples of its specification, and by hand."""

from __future__ import annotations

import ipaddress

import pytest

from relay_agent.services.proxy_protocol import Version, header

# A header of version 2 that HAProxy wrote for 172.19.0.1:42578 to 172.19.0.3:80.
HAPROXY = bytes.fromhex("0d0a0d0a000d0a515549540a 2111000c ac130001 ac130003 a652 0050")


def test_version_2_over_ipv4_is_haproxys_but_for_the_address_of_the_relay() -> None:
    said = header("v2", ("172.19.0.1", 42578), 80)
    assert said == HAPROXY.replace(bytes.fromhex("ac130003"), bytes(4))


def test_version_2_over_ipv6() -> None:
    said = header("v2", ("2001:db8::9", 65535), 11111)
    assert said[:16] == HAPROXY[:12] + b"\x21\x21\x00\x24"
    source, here = ipaddress.IPv6Address(said[16:32]), ipaddress.IPv6Address(said[32:48])
    assert (str(source), str(here)) == ("2001:db8::9", "::")
    assert said[48:] == b"\xff\xff\x2b\x67"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (("203.0.113.9", 4711), b"PROXY TCP4 203.0.113.9 0.0.0.0 4711 11111\r\n"),
        (("2001:db8::9", 0), b"PROXY TCP6 2001:db8::9 :: 0 11111\r\n"),
        (("fe80::1%eth0", 5), b"PROXY TCP6 fe80::1 :: 5 11111\r\n"),
        (("::ffff:203.0.113.9", 5), b"PROXY TCP4 203.0.113.9 0.0.0.0 5 11111\r\n"),
        (("a front\r\nPROXY", 5), b"PROXY UNKNOWN\r\n"),
    ],
)
def test_version_1(source: tuple[str, int], said: bytes) -> None:
    assert header("v1", source, 11111) == said


def test_version_1_has_at_most_107_bytes() -> None:
    longest = ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535)
    assert len(header("v1", longest, 65535)) <= 107


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_visitor_without_an_address_is_unknown(version: Version) -> None:
    said = header(version, ("somebody", 1), 1)
    assert said in (b"PROXY UNKNOWN\r\n", HAPROXY[:12] + b"\x21\x00\x00\x00")
