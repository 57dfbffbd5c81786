"""Network namespaces: entered by a thread, made, and removed together with all that runs in them.

A namespace is a property of a thread, and children inherit it. So whatever starts a process or
opens a socket works in a namespace unchanged, if its thread has entered it.

Names say who made them: `lab-PID-NUMBER-ROLE`. A run of the tests that was killed leaves its
namespaces behind, and processes in them; the next run finds that the PID is gone and removes both.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NAMED: Final = Path("/run/netns")
# `ip netns exec NAME` mounts the files of /etc/netns/NAME over those of /etc.
FILES: Final = Path("/etc/netns")

_CLONE_NEWNET: Final = 0x40000000
_NAME: Final = re.compile(r"lab-(\d+)-\d+-[a-z]+")
# From SIGKILL until a process is gone: the kernel closes its sockets, even on a busy machine.
_DEATH: Final = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


def enter(name: str) -> None:
    """Move the calling thread into the namespace `name`, for good."""
    descriptor = os.open(NAMED / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(descriptor)
    finally:
        os.close(descriptor)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"entering a network namespace: {os.strerror(number)}")


class Namespace:
    def __init__(self, name: str) -> None:
        assert _NAME.fullmatch(name), name
        self.name = name
        run_ip("netns", "add", name)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets opened and processes started by this thread meanwhile belong to the namespace.

        Looking at /proc/net too, if this is the main thread.
        """
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(self.name)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(before)

    def ip(self, *commands: str) -> None:
        """Run each of `commands`, written as after `ip`; one process for them all."""
        run_ip("-n", self.name, "-batch", "-", stdin="\n".join(commands))

    def write_file(self, name: str, text: str) -> None:
        """Make `text` the /etc/NAME of what `ip netns exec` starts in this namespace."""
        folder = FILES / self.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    def remove(self) -> None:
        remove(self.name)


def run_ip(*arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["ip", *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"ip {' '.join(arguments)}\n{stdin}\n{done.stderr}"
    return done.stdout


def remove(name: str) -> None:
    """End every process of the namespace, and the namespace. Nothing happens if it is gone."""
    assert _NAME.fullmatch(name), name
    shutil.rmtree(FILES / name, ignore_errors=True)
    if not (NAMED / name).exists():
        return
    deadline = time.monotonic() + _DEATH
    while pids := _pids(name):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline, f"{name}: {pids} do not die"
        time.sleep(0.01)
    run_ip("netns", "del", name)


def _pids(name: str) -> list[int]:
    """The processes in the namespace, except this one and those that only wait to be reaped."""
    pids = [int(line) for line in run_ip("netns", "pids", name).split()]
    return [pid for pid in pids if pid != os.getpid()]


def leftovers() -> list[str]:
    """Namespaces, and folders of files for them, whose maker has died."""
    names = {path.name for folder in (NAMED, FILES) if folder.is_dir() for path in folder.iterdir()}
    matches = [match for name in sorted(names) if (match := _NAME.fullmatch(name))]
    return [match.group() for match in matches if not Path(f"/proc/{match.group(1)}").exists()]


def remove_leftovers() -> None:
    for name in leftovers():
        # Another run, starting at the same moment, may be at it as well.
        with contextlib.suppress(AssertionError):
            remove(name)
