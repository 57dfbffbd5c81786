from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.process.address import HostPort
from relay_agent.services.service import Service, parse_service


@pytest.mark.parametrize(
    ("text", "service"),
    [
        ("ssh=127.0.0.1:22", Service("ssh", HostPort("127.0.0.1", 22))),
        ("ssh=127.0.0.1:22@11111", Service("ssh", HostPort("127.0.0.1", 22), 11111)),
        ("web=[::1]:80@1", Service("web", HostPort("::1", 80), 1)),
        ("a.B_c-9=nas.lan:65535@65535", Service("a.B_c-9", HostPort("nas.lan", 65535), 65535)),
        ("x" * 32 + "=h:1", Service("x" * 32, HostPort("h", 1))),
    ],
)
def test_services_are_read(text: str, service: Service) -> None:
    assert parse_service(text) == service


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "NAME=HOST:PORT"),
        ("ssh", "NAME=HOST:PORT"),
        ("127.0.0.1:22", "NAME=HOST:PORT"),
        ("=127.0.0.1:22", "service name"),
        ("-x=127.0.0.1:22", "service name"),
        ("two words=127.0.0.1:22", "service name"),
        ("x" * 33 + "=h:1", "service name"),
        ("ssh=", ""),
        ("ssh=127.0.0.1", ""),
        ("ssh=127.0.0.1:0", ""),
        ("ssh=127.0.0.1:65536", ""),
        ("ssh=127.0.0.1:22@", "a port from 1 to 65535"),
        ("ssh=127.0.0.1:22@0", "a port from 1 to 65535"),
        ("ssh=127.0.0.1:22@65536", "a port from 1 to 65535"),
        ("ssh=127.0.0.1:22@-1", "a port from 1 to 65535"),
        ("ssh=127.0.0.1:22@²", "a port from 1 to 65535"),
    ],
)
def test_other_text_is_answered_with_what_is_expected(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match="expected") as refused:
        parse_service(text)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


@given(st.text())
@example("a=b:1@" + "9" * 5000)
def test_no_text_raises_anything_else(text: str) -> None:
    for candidate in (text, f"ssh={text}", f"ssh=h:1@{text}"):
        with contextlib.suppress(ValueError):
            parse_service(candidate)
