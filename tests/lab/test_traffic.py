"""The traffic kit sees what it is there to see. In place of ssh stands a pipe that spoils it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.lab import far
from tests.support.lab.network import Network
from tests.support.lab.traffic import Download, Lines, Ssh, Upload
from tests.support.waiting import eventually

AMISS = "expected line|not the pattern|arrived|did not say"


class Pipeline(subprocess.Popen[bytes]):
    """Several processes, that end as the one ssh would."""

    def __init__(self, script: str) -> None:
        pipe = subprocess.PIPE
        super().__init__(
            ["bash", "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Pipe(Network):
    """Runs the far end right here, with commands before and after it to pass all through."""

    def __init__(self, *, before: str = "cat", after: str = "cat") -> None:
        super().__init__(Path("/nonexistent"))
        self._before, self._after = before, after

    def start_ssh(self, command: str) -> subprocess.Popen[bytes]:
        # The status is the far end's, as that of ssh is.
        return Pipeline(f"set -o pipefail; {self._before} | ({command}) | {self._after}")


@pytest.mark.parametrize("kind", [Lines, Upload, Download])
def test_an_honest_way(kind: type[Ssh]) -> None:
    run(kind(Pipe()))


# sed counts lines from 1, dd counts bytes; either lets the rest through as it comes.
LOSE_LINE, DOUBLE_LINE, SWAP_LINES = (
    "sed -u 5d",
    "sed -u 5p",
    "sed -u '5{N;s/\\(.*\\)\\n\\(.*\\)/\\2\\n\\1/}'",
)
LOSE_BYTE = "(head -c 99999; head -c 1 >/dev/null; cat)"
DOUBLE_BYTE = "(head -c 99999; head -c 1 | sed 'p'; cat)"
LOSE_END = "(head -c 262144; cat >/dev/null)"


@pytest.mark.parametrize("spoil", [LOSE_LINE, DOUBLE_LINE, SWAP_LINES])
@pytest.mark.parametrize("side", ["before", "after"])
def test_lines(spoil: str, side: str) -> None:
    with pytest.raises(AssertionError, match=AMISS):
        run(Lines(Pipe(**{side: spoil})))


@pytest.mark.parametrize("spoil", [LOSE_BYTE, DOUBLE_BYTE, LOSE_END])
def test_upload(spoil: str) -> None:
    with pytest.raises(AssertionError, match=AMISS):
        run(Upload(Pipe(before=spoil)))


@pytest.mark.parametrize("spoil", [LOSE_BYTE, DOUBLE_BYTE, LOSE_END])
def test_download(spoil: str) -> None:
    with pytest.raises(AssertionError, match=AMISS):
        run(Download(Pipe(after=spoil)))


def run(ssh: Ssh) -> None:
    """Long enough for whatever is amiss to pass by."""
    try:
        # Its processes start late on a busy machine; with nothing sent, nothing would be amiss.
        time.sleep(3.0)
        ssh.finish(limit=10)
    finally:
        ssh.kill()


def test_silence_and_recovery_are_measured() -> None:
    lines = Lines(Pipe(after="(head -n 20; sleep 1; cat)"))
    try:
        lines.wait_until_moving()
        began = time.monotonic()
        eventually(lambda: lines.silence(since=began) > 0.4, what="silence")
        again = lines.usable_again(since=time.monotonic(), limit=10)
        assert 0.3 < again < 1.5
        assert 0.8 < lines.silence(since=began) < 1.5
        lines.finish(limit=10)
        # That direction was whole.
        assert lines.far_silence < 0.6
    finally:
        lines.kill()


def test_what_is_not_reset_is_told() -> None:
    lines = Lines(Pipe())
    try:
        with pytest.raises(AssertionError, match="still runs"):
            lines.assert_reset(limit=0.2)
        lines.finish(limit=10)
        with pytest.raises(AssertionError, match="status 0"):
            lines.assert_reset(limit=1)
    finally:
        lines.kill()


def test_the_pattern_is_its_own_position() -> None:
    whole = far.pattern(0, 1000)
    assert whole[:24] == bytes(7) + b"\0" + bytes(7) + b"\1" + bytes(7) + b"\2"
    for start in range(20):
        for size in range(20):
            assert far.pattern(start, size) == whole[start : start + size]
