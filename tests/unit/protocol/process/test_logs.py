from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from protocol.process import logs
from protocol.process.logs import LINES_A_MINUTE, configure, event, failure
from protocol.process.rate_limit import PERIOD

log = logging.getLogger("test")


@pytest.fixture(autouse=True)
def plain_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root, former = logging.getLogger(), logging.raiseExceptions
    level, handlers = root.level, root.handlers[:]
    root.handlers.clear()  # those of pytest are not to be closed
    # 1 ms past the second, in UTC.
    monkeypatch.setattr("time.time", lambda: 1795572000.001)
    monkeypatch.setattr("time.time_ns", lambda: 1795572000_001_000_000)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.raiseExceptions = former


def test_text_has_time_level_name_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text")
    event(log, logging.INFO, "link-up", agent="home", address="203.0.113.9:4711")
    assert capsys.readouterr().err == (
        "2026-11-25T02:00:00Z INFO link-up agent=home address=203.0.113.9:4711\n"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a b", 'x="a b"'),
        ("", 'x=""'),
        ('a"b', r'x="a\"b"'),
        ("a=b", 'x="a=b"'),
        ("a\nb", r'x="a\nb"'),
        ("\x1b[31m", r'x="\u001b[31m"'),
        ("é", r'x="\u00e9"'),
        (5, "x=5"),
        (0.1 + 0.2, "x=0.3"),
        (True, "x=true"),
        (b"\x01\xff", "x=01ff"),
        ([1, "b"], "x=1,b"),
        ((), 'x=""'),
        (ValueError("no way"), 'x="no way"'),
        (None, ""),
    ],
)
def test_values_in_text(capsys: pytest.CaptureFixture[str], value: object, shown: str) -> None:
    configure("info", "text")
    event(log, logging.INFO, "name", x=value)
    assert capsys.readouterr().err == f"2026-11-25T02:00:00Z INFO name {shown}".rstrip() + "\n"


def test_json_keeps_types_and_its_envelope(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    event(
        log, logging.WARNING, "name", a=1, b=None, c=[True, b"\x01"], d=0.12345, level="x", e="\n"
    )
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "time": "2026-11-25T02:00:00.001Z",
        "level": "warning",
        "event": "name",
        "a": 1,
        "b": None,
        "c": [True, "01"],
        "d": 0.123,
        "e": "\n",
    }
    assert list(json.loads(line))[:3] == ["time", "level", "event"]


def test_a_level_hides_what_is_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    configure("warning", "text")
    event(log, logging.INFO, "unseen")
    event(log, logging.WARNING, "seen")
    assert capsys.readouterr().err.splitlines() == ["2026-11-25T02:00:00Z WARNING seen"]


def test_plain_logging_of_libraries_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text")
    log.warning("two\nlines of %s", "text")
    try:
        int("x")
    except ValueError:
        log.exception("failed")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(r'WARNING log logger=test text="two\nlines of text"')
    assert "ERROR log logger=test text=failed traceback=" in second
    assert "ValueError: invalid literal" in second


def test_a_failure_has_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    try:
        int("x")
    except ValueError:
        failure(log, "name", a=1)
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["event"], line["a"]) == ("error", "name", 1)
    assert "ValueError: invalid literal" in line["traceback"]


def test_a_full_disk_behind_standard_error_is_no_second_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    configure("info", "text")
    event(log, logging.INFO, "lost")


class Minute:
    """The clock that rate limits go by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


@pytest.fixture
def minute(monkeypatch: pytest.MonkeyPatch) -> Minute:
    return Minute(monkeypatch)


def test_a_flood_of_one_event_is_so_many_lines_and_then_a_count(
    minute: Minute, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("debug", "text")
    for number in range(LINES_A_MINUTE + 5):
        event(log, logging.INFO, "flood", agent="home", x=number)
    assert len(capsys.readouterr().err.splitlines()) == LINES_A_MINUTE
    # Neither another event, nor another agent's, nor what was asked for by level is held back.
    event(log, logging.INFO, "other", agent="home")
    event(log, logging.INFO, "flood", agent="office")
    event(log, logging.DEBUG, "flood", agent="home")
    log.info("a library's")
    assert len(capsys.readouterr().err.splitlines()) == 4
    minute.now += PERIOD
    event(log, logging.INFO, "flood", agent="home", x=1)
    event(log, logging.INFO, "flood", agent="home", x=2)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("INFO flood agent=home x=1 suppressed=5")
    assert second.endswith("INFO flood agent=home x=2")


def test_kinds_remembered_are_bounded(
    minute: Minute, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "_MAX_KINDS", 3)
    configure("info", "text")
    (output,) = logging.getLogger().handlers
    (enough,) = output.filters
    for number in range(10):
        event(log, logging.INFO, "event", agent=number)
        minute.now += PERIOD / 2
    assert isinstance(enough, logs.Enough)
    assert len(enough._rate_limits) <= 3
    assert len(capsys.readouterr().err.splitlines()) == 10
