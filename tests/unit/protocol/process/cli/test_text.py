from __future__ import annotations

import io

import pytest

from protocol.process.cli.text import Paint, amount, milliseconds, span, table, times, wrapped


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9951, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (44_000_000, "44 MB"),
        (5_000_000_000, "5.0 GB"),
        (7 * 10**15, "7000 TB"),
    ],
)
def test_amounts(count: int, text: str) -> None:
    assert amount(count) == text


def test_round_trips_and_times() -> None:
    assert [milliseconds(each) for each in (None, 0.00004, 0.00021, 0.00996, 0.5)] == [
        "unknown",
        "under 0.1 ms",
        "0.2 ms",
        "10 ms",
        "500 ms",
    ]
    assert [times(each) for each in (1, 2, 3)] == ["once", "twice", "3 times"]


def test_a_last_cell_that_does_not_fit_has_its_own_line() -> None:
    assert table(("A", "B"), [("x", "y" * 70), ("x", "y" * 78)]) == (
        f"A  B\nx  {'y' * 70}\nx\n    {'y' * 78}\n"
    )


def test_long_texts_are_wrapped_at_words_alone() -> None:
    lines = wrapped("word " * 30 + "x" * 90, "- ", "  ").split("\n")
    assert lines[0].startswith("- word")
    assert all(len(line) <= 80 for line in lines[:-1])
    assert lines[-1] == "  " + "x" * 90


class ControllingTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Paint.of(ControllingTerminal())("red", "x") == "\x1b[31mx\x1b[0m"
    assert Paint.of(ControllingTerminal())("red", "") == ""
    assert Paint.of(io.StringIO())("red", "x") == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert not Paint.of(ControllingTerminal()).on
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Paint.of(ControllingTerminal()).on


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0.9, "0s"),
        (59, "59s"),
        (60, "1m"),
        (61, "1m1s"),
        (3600, "1h"),
        (3661, "1h1m"),
        (86400 * 3 + 3600 * 2 + 61, "3d2h"),
        (86400 + 59, "1d"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text
