"""How every command ends, and how it speaks to the person who gave it.

    0    done
    1    it could not be done, for a reason outside (CommandFailed)
    2    the user's options, configuration or state folder are at fault
    130  interrupted from the keyboard

A failure is one line on standard error. A traceback means a bug of ours.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TextIO

from protocol.process.config import ConfigError
from protocol.process.state import StateError

_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
# As often as a person could notice; a look is a file or a question over a socket of this machine.
_POLL_INTERVAL: Final = 0.1


class CommandFailed(Exception):  # noqa: N818 - an outcome, not a defect
    """What was asked for cannot be done now; the text is one line for the user."""


def happens(look: Callable[[], bool], *, within: float) -> bool:
    """Wait for what a command has set going elsewhere; False if it is not so after that long."""
    give_up = time.monotonic() + within
    while not look():
        if time.monotonic() >= give_up:
            return False
        time.sleep(_POLL_INTERVAL)
    return True


def run_command(command: Callable[[], int | None], *, program: str) -> int:
    """Run `command` and return the exit status; None from it counts as 0.

    `program` is the name that a failure is told under.
    """
    try:
        status = command() or 0
        say("")  # what argparse or a library may have printed
    except BaseExceptionGroup as group:  # trio wraps whatever leaves a nursery
        expected, bugs = group.split(_EXPECTED)
        if bugs is not None or expected is None:
            raise
        return _end(program, _first(expected))
    except _EXPECTED as end:
        return _end(program, end)
    return status


_EXPECTED: Final = (ConfigError, StateError, CommandFailed, KeyboardInterrupt)


def _end(program: str, end: BaseException) -> int:
    if isinstance(end, KeyboardInterrupt):
        return _INTERRUPTED
    # One line, whatever a path or a peer put into the text.
    sys.stderr.write(f"{program}: {' '.join(str(end).split())}\n")
    return 1 if isinstance(end, CommandFailed) else 2


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def say(text: str) -> None:
    """Write `text` to standard output at once, so that a failure to do so is not missed."""
    output: TextIO | None = sys.stdout  # None if the process was started without
    if output is None:
        return
    try:
        output.write(text)
        output.flush()
    except OSError as error:
        # The interpreter would flush again at exit and complain in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        raise CommandFailed(f"cannot write the output: {error.strerror}") from None


def say_json(entries: Iterable[Mapping[str, object]]) -> None:
    say(json.dumps(list(entries), indent=2) + "\n")


def hint(text: str) -> None:
    """For the person at the terminal; standard output is for what was asked for."""
    sys.stderr.write(text + "\n")
