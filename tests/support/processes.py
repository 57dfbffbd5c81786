"""Processes under test: their output line by line, their end, and commands run to their end.

The one process harness of end-to-end tests, lab, soak, benchmarks and demo. It and what it imports
need the standard library only: the demo says what is missing where nothing is installed yet.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from tests.support.waiting import LIMIT


def script(name: str) -> str:
    """The installed command `name` of the environment the tests run in."""
    path = Path(sys.executable).with_name(name)
    assert path.exists(), f"{path} is not there: install the project into this environment"
    return str(path)


def program(name: str) -> str:
    """A program of the system; sshd and dropbear are not on every user's PATH."""
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    assert path is not None, f"{name} is not installed: run .ci/system-packages test"
    return path


def plain_environment(home: Path) -> dict[str, str]:
    """What a process gets to see: no setting and no home of the user who runs the tests."""
    return {
        "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "LANG": "C.UTF-8",
        # The same cryptography as the tests themselves.
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }


class ProcessUnderTest:
    """A long-running process, its output line by line, and its end.

    It is only ever signalled by its own process id.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        cwd: Path | None = None,
        descriptors: Sequence[int] = (),
        heard: Callable[[Sequence[str], str], None] | None = None,
        own_session: bool = False,
    ) -> None:
        """The process inherits `descriptors` under their numbers here.

        `heard` is called with `argv` and each line of stderr, in another thread. With
        `own_session` a terminal's signals do not reach the process.
        """
        self.argv = [str(part) for part in argv]
        self.started_at = time.monotonic()
        self._popen = subprocess.Popen(
            self.argv,
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=descriptors,
            start_new_session=own_session,
        )
        self._heard = heard
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._news = threading.Condition()
        self._stdout: list[str] = []
        self._stderr: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True)
            for pipe, lines in (
                (self._popen.stdout, self._stdout),
                (self._popen.stderr, self._stderr),
            )
        ]
        self._open_pipes = len(self._readers)
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: IO[str], lines: list[str]) -> None:
        with pipe:
            for line in pipe:
                with self._news:
                    lines.append(line.rstrip("\n"))
                    self._news.notify_all()
                if self._heard is not None and lines is self._stderr:
                    self._heard(self.argv, line.rstrip("\n"))
        with self._news:
            self._open_pipes -= 1
            self._news.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    @property
    def stdout(self) -> str:
        with self._news:
            return "".join(f"{line}\n" for line in self._stdout)

    @property
    def log(self) -> list[str]:
        """The lines of stderr so far; `len(process.log)` marks a place for `after`."""
        with self._news:
            return list(self._stderr)

    def wait_for_line(self, pattern: str, *, after: int = 0, limit: float = LIMIT) -> re.Match[str]:
        """The first match of `pattern` in a line of stderr, from line `after` on."""
        return self._wait_for(self._stderr, pattern, after, limit)

    def wait_for_output(self, pattern: str, *, limit: float = LIMIT) -> re.Match[str]:
        """The first match of `pattern` in a line of stdout."""
        return self._wait_for(self._stdout, pattern, 0, limit)

    def _wait_for(self, lines: list[str], pattern: str, seen: int, limit: float) -> re.Match[str]:
        deadline = time.monotonic() + limit
        with self._news:
            while True:
                for line in lines[seen:]:
                    if match := re.search(pattern, line):
                        return match
                seen = max(seen, len(lines))
                rest = deadline - time.monotonic()
                if not self._open_pipes or rest <= 0:
                    break
                self._news.wait(rest)
        raise AssertionError(f"no line matches {pattern!r}\n{self.describe()}")

    def describe(self) -> str:
        state = "running" if self.running else f"ended with status {self._popen.returncode}"
        with self._news:
            lines = [f"$ {' '.join(self.argv)}", f"  ({state})"]
            lines += [f"  out| {line}" for line in self._stdout]
            lines += [f"  err| {line}" for line in self._stderr]
        return "\n".join(lines)

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Kill -9: the kernel alone cleans up behind the process."""
        self._popen.kill()
        self._popen.wait(LIMIT)

    def wait(self, *, limit: float = LIMIT) -> int:
        """The exit status, once the process has ended and its whole output is here."""
        try:
            status = self._popen.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {limit:g} s\n{self.describe()}") from None
        for reader in self._readers:
            # A grandchild may still hold the pipe, as a login session of dropbear does.
            reader.join(1.0)
        return status

    def terminate(self, number: signal.Signals = signal.SIGTERM, *, limit: float = LIMIT) -> int:
        self.send(number)
        return self.wait(limit=limit)

    def stop(self) -> None:
        """End the process however it takes; for cleaning up."""
        if self.running:
            self._popen.terminate()
            try:
                self._popen.wait(5.0)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        self.wait()


def run(
    argv: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    stdin: str | None = None,
    limit: float = LIMIT,
    before_exec: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Its status is the caller's to judge."""
    return subprocess.run(
        [str(part) for part in argv],
        env=dict(environment),
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        check=False,
        timeout=limit,
        preexec_fn=before_exec,
    )
