from __future__ import annotations

import os

from protocol.process.sighup import ControllingTerminal


def test_a_terminal_that_was_there_and_is_not_any_more() -> None:
    master, slave = os.openpty()
    try:
        terminal = ControllingTerminal(slave)
        assert not terminal.is_gone
        os.close(master)
        assert terminal.is_gone
    finally:
        os.close(slave)


def test_what_never_was_a_terminal_is_not_gone() -> None:
    reading, writing = os.pipe()
    terminal = ControllingTerminal(writing)
    os.close(reading)
    assert not terminal.is_gone
    os.close(writing)
