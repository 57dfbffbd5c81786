"""One of the two programs, with its trio tasks counted.

    python tests/support/soak/counted.py FILE relay-server run …

FILE holds their number at any time: what of a process the system cannot tell from outside.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import trio

from relay_agent.__main__ import main as relay_agent
from relay_server.__main__ import main as relay_server


class Count(trio.abc.Instrument):
    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY)
        self._living = 0

    def task_spawned(self, _: trio.lowlevel.Task) -> None:
        self._change(1)

    def task_exited(self, _: trio.lowlevel.Task) -> None:
        self._change(-1)

    def _change(self, by: int) -> None:
        self._living += by
        os.pwrite(self._file, b"%9d" % self._living, 0)


def command(file: Path, program: str) -> list[str]:
    return [sys.executable, __file__, str(file), program]


def main() -> None:
    file, program = Path(sys.argv[1]), sys.argv[2]
    sys.argv[:] = [program, *sys.argv[3:]]
    counted = functools.partial(trio.run, instruments=[Count(file)])
    # The product runs as it is; only its loop is watched.
    trio.run = counted  # type: ignore[assignment]
    (relay_server if program == "relay-server" else relay_agent)()


if __name__ == "__main__":
    main()
