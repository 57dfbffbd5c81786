from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.process.address import HostPort, is_address, is_host, parse_host_port, parse_port


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("vps.example.net:7022", "vps.example.net", 7022),
        ("localhost:1", "localhost", 1),
        ("a_b-c.example.:65535", "a_b-c.example.", 65535),
        ("192.0.2.1:22", "192.0.2.1", 22),
        ("[::]:7022", "::", 7022),
        ("[fe80::1%eth0]:22", "fe80::1%eth0", 22),
    ],
)
def test_host_and_port(text: str, host: str, port: int) -> None:
    address = parse_host_port(text)
    assert address == HostPort(host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("vps", "vps", 7022),
        ("vps:443", "vps", 443),
        ("::1", "::1", 7022),
        ("2001:db8::22", "2001:db8::22", 7022),
        ("[::1]", "::1", 7022),
        ("[::1]:443", "::1", 443),
    ],
)
def test_the_port_may_be_left_out_where_there_is_a_default(text: str, host: str, port: int) -> None:
    assert parse_host_port(text, default_port=7022) == HostPort(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":22",
        "vps",
        "vps:",
        "vps:-1",
        "vps:22x",
        "vps:٢٢",
        "vps: 22",
        "http://vps",
        "::1",
        "[::1]",
        "[::1]22",
        "[::1",
        "[vps]:22",
        "[]:22",
        "a b:22",
        "https://vps:22",
        "-vps:22",
        "vps-:22",
        "a..b:22",
        "10.0.0:22",
        "300.1.1.1:22",
        "é:22",
        f"{'a' * 64}:22",
        f"{'a.' * 127}aa:22",
    ],
)
def test_what_is_expected_is_said(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"^expected HOST:PORT \(\[ADDRESS\]:PORT for IPv6\), not "
    ):
        parse_host_port(text)


@pytest.mark.parametrize("text", ["", "a/b", "1:2", "[::1]:", "vps:"])
def test_a_default_does_not_excuse_everything(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected "):
        parse_host_port(text, default_port=7022)


@pytest.mark.parametrize("port", ["0", "65536", "022222", "99999999999"])
def test_a_port_out_of_range(port: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a port from 1 to 65535 in "):
        parse_host_port(f"vps:{port}")


@given(st.text())
def test_any_text_gives_an_address_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        address = parse_host_port(text)
        assert parse_host_port(str(address)) == address


def test_names_and_addresses() -> None:
    assert is_address("192.0.2.1")
    assert is_address("::ffff:192.0.2.1")
    assert not is_address("vps")
    assert is_host("a" * 63)
    assert is_host(f"{'a.' * 126}a")
    assert not is_host("1.2.3")


@pytest.mark.parametrize("text", ["0", "65536", "", "x", "-1", "000001", "²", "1 "])
def test_ports_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a port from 1 to 65535"):
        parse_port(text)


def test_ports_at_the_ends_of_the_range() -> None:
    assert [parse_port(text) for text in ("1", "65535")] == [1, 65535]
