"""The demo is the first thing a newcomer runs: it works, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.processes import ProcessUnderTest, plain_environment, run
from tests.support.waiting import LIMIT, LONG_LIMIT

DEMO = Path(__file__).parents[2] / "deploy" / "demo.py"


def assert_nothing_is_left(said: str) -> None:
    found = re.search(r"DEMO=(\S+)", said)
    assert found is not None, said
    folder = Path(found[1])
    assert not folder.exists()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            assert os.fsencode(folder) not in (process / "cmdline").read_bytes()


def test_it_works_and_ends_by_itself(tmp_path: Path) -> None:
    environment = plain_environment(tmp_path) | {"TMPDIR": str(tmp_path)}
    done = run([sys.executable, DEMO], environment=environment, limit=LONG_LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.search(r"^   Hello from behind the relay", done.stdout, re.MULTILINE)
    assert_nothing_is_left(done.stdout)
    assert not list(tmp_path.iterdir())


def test_it_stays_up_in_a_terminal_until_ctrl_c(tmp_path: Path) -> None:
    leader, terminal = pty.openpty()
    with os.fdopen(leader, "r+b", buffering=0) as keyboard_and_screen:
        demo = subprocess.Popen(
            [sys.executable, DEMO],
            env=plain_environment(tmp_path) | {"TMPDIR": str(tmp_path)},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            # The terminal becomes the one that controls it, or Ctrl-C would be a mere byte.
            preexec_fn=_take_the_terminal,
        )
        os.close(terminal)
        said = b""
        while b"until you press Ctrl-C" not in said:
            said += keyboard_and_screen.read(4096)
        assert demo.poll() is None
        keyboard_and_screen.write(b"\x03")
        with contextlib.suppress(OSError):  # EIO is how the terminal tells that all have left
            while piece := keyboard_and_screen.read(4096):
                said += piece
        assert demo.wait(LIMIT) == 0, said
    assert_nothing_is_left(re.sub(r"\x1b\[[0-9;]*m", "", said.decode()))


def _take_the_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_it_cleans_up_when_stopped_half_way(tmp_path: Path) -> None:
    environment = plain_environment(tmp_path) | {"TMPDIR": str(tmp_path)}
    with ProcessUnderTest([sys.executable, DEMO], environment=environment) as demo:
        demo.wait_for_output(r"relay-server: .*listening")
        assert demo.terminate(signal.SIGTERM) == 130
        assert_nothing_is_left(demo.stdout)


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    environment = plain_environment(tmp_path) | {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    # A Python beside which no relay-server is installed, nor anywhere on that PATH.
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    done = run([python, DEMO], environment=environment)
    assert done.returncode == 1
    assert "relay-agent is not installed" in done.stdout
    assert_nothing_is_left(done.stdout)
