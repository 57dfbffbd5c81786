"""A user's traffic: a shell in which something moves both ways all the time, and copies beside it.

The shell counts lines: each end says one every `PACE` seconds, numbered, with the number it last
heard. So both directions are checked for order, loss and doubles, each silence is seen, and a line
confirmed by the far end has gone both ways. The copies, one a direction, are as large as they get
until told to stop: they outlast any fault.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from tests.support.lab import far
from tests.support.lab.network import Network
from tests.support.waiting import LIMIT, LONG_LIMIT, eventually

# The finest that a silence can be told by.
PACE: Final = 0.05
FAR: Final = Path(far.__file__)
# What ssh says, by version and by the call that met it, when the other end reset the connection.
RESET: Final = ("Connection reset", "Broken pipe")


class Ssh:
    """An ssh that runs far.py, and the threads that talk to it."""

    def __init__(self, lab: Network, *arguments: str) -> None:
        # -I: whatever PYTHON… variables there are, they are not for the far end. -S: nor is what is
        # installed, and looking for it takes longer than all the rest.
        command = f"exec {sys.executable} -IS {FAR} {' '.join(arguments)}"
        self._popen = lab.start_ssh(command)
        self.name = arguments[0]
        self.stopping = threading.Event()
        self._complaint = ""
        self._errors = b""
        self._threads = [
            threading.Thread(target=self._run, args=(work,), daemon=True)
            for work in (self._talk, self._listen, self._collect_errors)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, work: object) -> None:
        assert callable(work)
        try:
            work()
        except AssertionError as wrong:
            self._complaint = self._complaint or str(wrong)
            # Nobody reads on, so the far end would wait for ever.
            self._popen.kill()

    def _collect_errors(self) -> None:
        self._errors = self.pipe(self._popen.stderr).read()

    def _talk(self) -> None:
        # The pipe breaks when ssh ends before it is told to; how it ended is judged at `finish`.
        with contextlib.suppress(BrokenPipeError), self.pipe(self._popen.stdin) as far_end:
            self.talk(far_end)

    def _listen(self) -> None:
        self.listen(self.pipe(self._popen.stdout))

    @staticmethod
    def pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe

    def talk(self, far_end: IO[bytes]) -> None:
        """Write until `stopping`; the pipe is closed after that."""
        raise NotImplementedError

    def listen(self, far_end: IO[bytes]) -> None:
        """Read to the end, and assert that it is right."""
        raise NotImplementedError

    def check(self) -> None:
        """Assert that all came over, after a good end."""
        raise NotImplementedError

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    @property
    def errors(self) -> str:
        return self._errors.decode("utf-8", "replace")

    def finish(self, *, limit: float = LONG_LIMIT) -> None:
        """Stop, and fail unless every line or byte went over."""
        self.stopping.set()
        status = self._wait(limit)
        assert not self._complaint, f"{self.name}: {self._complaint}"
        assert status == 0, f"{self.name}: ssh ended with status {status}: {self.errors}"
        self.check()

    def assert_reset(self, *, limit: float) -> None:
        """Fail unless the connection is reset: neither kept nor ended as if all had been said."""
        status = self._wait(limit)
        assert not self._complaint, f"{self.name}: {self._complaint}"
        assert status == 255, f"{self.name}: ssh ended with status {status}: {self.errors}"
        assert any(word in self.errors for word in RESET), f"{self.name}: {self.errors}"

    def _wait(self, limit: float) -> int:
        try:
            status = self._popen.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name}: ssh still runs after {limit:g} s") from None
        self.stopping.set()
        for thread in self._threads:
            thread.join(LIMIT)
        return status

    def kill(self) -> None:
        self.stopping.set()
        self._popen.kill()  # nothing happens if it has ended
        self._wait(LIMIT)
        for pipe in (self._popen.stdout, self._popen.stderr):
            self.pipe(pipe).close()


class Lines(Ssh):
    def __init__(self, lab: Network) -> None:
        self._said: list[float] = []  # when line N + 1 was
        self._heard: list[float] = []
        self._confirmed: list[float] = []
        self._end: list[int] = []
        super().__init__(lab, "lines", str(PACE))

    def talk(self, far_end: IO[bytes]) -> None:
        while not self.stopping.wait(PACE):
            self._said.append(time.monotonic())
            far_end.write(b"%d\n" % len(self._said))
            far_end.flush()

    def listen(self, far_end: IO[bytes]) -> None:
        for line in far_end:
            now = time.monotonic()
            if line.startswith(b"end "):
                self._end = [int(word) for word in line.split()[1:]]
                continue
            if not line.endswith(b"\n"):  # cut by a reset
                return
            number, confirmed = (int(word) for word in line.split())
            self._heard.append(now)
            assert number == len(self._heard), f"expected line {len(self._heard)}, got {number}"
            known = len(self._confirmed)
            assert known <= confirmed <= len(self._said), f"{confirmed} lines confirmed"
            self._confirmed += [now] * (confirmed - known)

    def check(self) -> None:
        assert self._end, "the far end did not say what it heard"
        assert self._end[0] == len(self._said), f"{self._end[0]} of {len(self._said)} lines arrived"

    def wait_until_moving(self) -> None:
        eventually(lambda: len(self._confirmed) > 2, what="the first lines")

    def round_trip(self, *, since: float, until: float) -> float | None:
        """The median of the lines said between these moments that were confirmed at all."""
        trips = [
            came - went
            for went, came in zip(self._said, self._confirmed, strict=False)
            if since <= went < until
        ]
        return statistics.median(trips) if trips else None

    def silence(self, *, since: float) -> float:
        """The longest time without a line from the far end, up to now."""
        moments = [since, *(at for at in self._heard if at >= since), time.monotonic()]
        return max(b - a for a, b in itertools.pairwise(moments))

    @property
    def far_silence(self) -> float:
        """The same at the far end, over its whole life; once it has ended well."""
        return self._end[1] / 1000

    def confirmed(self, *, since: float) -> float | None:
        """When a line said at `since` or later was first confirmed."""
        first = sum(at < since for at in list(self._said))
        return self._confirmed[first] if len(self._confirmed) > first else None

    def usable_again(self, *, since: float, limit: float) -> float:
        """How long after `since` a line said from then on was confirmed; fails at `limit`."""
        at = eventually(
            lambda: self.confirmed(since=since),
            what=f"a line said after the fault is confirmed ({self.errors})",
            limit=max(0.0, since + limit - time.monotonic()),
        )
        return at - since


class Copy(Ssh):
    """One direction; both ends know at any time how far they are."""

    def __init__(self, lab: Network, do: str) -> None:
        self.position = 0
        # Both ends are on this machine, whatever the network between them looks like.
        self._tally = tempfile.NamedTemporaryFile(buffering=0)  # noqa: SIM115 - see kill
        super().__init__(lab, do, self._tally.name)

    @property
    def far_position(self) -> int:
        self._tally.seek(0)
        return int(self._tally.read() or b"0")

    def lost(self) -> int:
        """Bytes that one end was rid of and the other never got, once the connection is broken."""
        raise NotImplementedError

    def kill(self) -> None:
        super().kill()
        self._tally.close()


class Upload(Copy):
    """From the laptop to the router."""

    def __init__(self, lab: Network) -> None:
        self._taken = -1
        super().__init__(lab, "take")

    def lost(self) -> int:
        return max(0, self.position - self.far_position)

    def talk(self, far_end: IO[bytes]) -> None:
        while not self.stopping.is_set():
            far_end.write(far.pattern(self.position, far.PIECE))
            far_end.flush()
            self.position += far.PIECE

    def listen(self, far_end: IO[bytes]) -> None:
        said = far_end.read()
        if said.endswith(b"\n"):
            self._taken = int(said)

    def check(self) -> None:
        assert self._taken == self.position, f"{self._taken} of {self.position} bytes arrived"


class Download(Copy):
    """From the router to the laptop."""

    def __init__(self, lab: Network) -> None:
        super().__init__(lab, "give")

    def wait_for(self, position: int) -> None:
        eventually(lambda: self.position > position, what=f"{position} bytes of the copy")

    def lost(self) -> int:
        return max(0, self.far_position - self.position)

    def talk(self, far_end: IO[bytes]) -> None:
        self.stopping.wait()

    def listen(self, far_end: IO[bytes]) -> None:
        while data := far_end.read1(1 << 16):  # type: ignore[attr-defined]  # it is buffered
            good = data == far.pattern(self.position, len(data))
            assert good, f"not the pattern between {self.position} and {self.position + len(data)}"
            self.position += len(data)

    def check(self) -> None:
        given = int(self.errors.split()[-1])
        assert self.position == given, f"{self.position} of {given} bytes arrived"


class Traffic:
    """The shell and both copies, at once."""

    def __init__(self, lab: Network, *, copies: bool = True) -> None:
        self.lines = Lines(lab)
        self.upload = Upload(lab) if copies else None
        self.download = Download(lab) if copies else None

    @property
    def all(self) -> list[Ssh]:
        return [ssh for ssh in (self.lines, self.upload, self.download) if ssh is not None]

    def wait_until_moving(self) -> None:
        self.lines.wait_until_moving()
        if self.download is not None:
            self.download.wait_for(1 << 16)

    def lost(self) -> int:
        """Bytes of the copies that are on neither side, once they are broken."""
        return sum(copy.lost() for copy in (self.upload, self.download) if copy is not None)

    def finish(self) -> None:
        """Everything that was said has arrived, and nothing else."""
        for ssh in self.all:
            ssh.stopping.set()
        for ssh in self.all:
            ssh.finish()

    def assert_reset(self, *, limit: float) -> None:
        until = time.monotonic() + limit
        for ssh in self.all:
            ssh.assert_reset(limit=max(0.0, until - time.monotonic()))


@contextlib.contextmanager
def traffic(lab: Network, *, copies: bool = True) -> Iterator[Traffic]:
    under_way = Traffic(lab, copies=copies)
    try:
        under_way.wait_until_moving()
        yield under_way
    finally:
        for ssh in under_way.all:
            ssh.kill()
