"""Preface, hello, welcome and denial: refused, or within the bounds and encoded again the same."""

from __future__ import annotations

from protocol.errors import RemoteProtocolError
from protocol.wire.body import MAX_REASON
from protocol.wire.hello import (
    MAX_FEATURE,
    MAX_FEATURES,
    MAX_PORTS,
    MAX_RETRY_AFTER,
    MAX_SESSION_WINDOW,
    MAX_STREAM_WINDOW,
    MAX_STREAMS,
    MAX_TEXT,
    MAX_TOKEN,
    MIN_TOKEN,
    MIN_WINDOW,
    U64_MAX,
    Denial,
    Hello,
    Limits,
    Welcome,
    decode_preface,
    encode_preface,
)


def fuzz_one(data: bytes) -> None:
    """The first byte says as which of them the rest is to be read."""
    read = (_preface, _hello, _welcome, _denial)[data[0] % 4 if data else 0]
    try:
        read(data[1:])
    except RemoteProtocolError:
        return


def _preface(data: bytes) -> None:
    preface = decode_preface(data)
    assert preface.raw == data == encode_preface(preface.suite, preface.version)


def _hello(data: bytes) -> None:
    hello = Hello.decode(data)
    assert len(hello.instance) == 16
    assert 0 <= hello.epoch <= U64_MAX
    _check_software(hello.software, hello.features)
    _check_limits(hello.limits)
    if hello.resume is not None:
        assert len(hello.resume.session) == 16
        assert 0 <= hello.resume.received <= U64_MAX
    assert hello.token is None or MIN_TOKEN <= len(hello.token) <= MAX_TOKEN
    assert hello.token is None or hello.token.hex() not in repr(hello)
    assert hello.successor is None or len(hello.successor) == 32
    assert Hello.decode(hello.encode()) == hello


def _welcome(data: bytes) -> None:
    welcome = Welcome.decode(data)
    assert len(welcome.session) == 16
    assert 0 <= welcome.received <= U64_MAX
    assert 1 <= len(welcome.name) <= MAX_TEXT
    assert welcome.name.isprintable()
    assert len(welcome.ports) <= MAX_PORTS
    assert all(1 <= port <= 65535 for port in welcome.ports)
    assert welcome.successor is None or len(welcome.successor) == 32
    assert welcome.agent_key is None or len(welcome.agent_key) == 32
    assert welcome.clock is None or 0 <= welcome.clock <= U64_MAX
    _check_software(welcome.software, welcome.features)
    _check_limits(welcome.limits)
    assert Welcome.decode(welcome.encode()) == welcome


def _denial(data: bytes) -> None:
    denial = Denial.decode(data)
    assert 1 <= denial.code <= 255
    assert len(denial.reason) <= MAX_REASON
    assert denial.reason.isprintable()
    assert 0 <= denial.retry_after <= MAX_RETRY_AFTER
    assert Denial.decode(denial.encode()) == denial


def _check_software(software: str, features: tuple[str, ...]) -> None:
    assert len(software) <= MAX_TEXT
    assert software.isprintable()
    assert len(features) <= MAX_FEATURES
    assert all(1 <= len(text) <= MAX_FEATURE and text.isprintable() for text in features)


def _check_limits(limits: Limits) -> None:
    assert 1 <= limits.streams <= MAX_STREAMS
    assert MIN_WINDOW <= limits.stream_window <= MAX_STREAM_WINDOW
    assert MIN_WINDOW <= limits.session_window <= MAX_SESSION_WINDOW
