"""What a process holds, read while the work rests, and compared with what it held after warm-up."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.programs import Agent, Relay

MIB: Final = 1024 * 1024
# What may go on growing for a while: the allocator's arenas and the pools of buffers, both up to
# the busiest moment so far. A leak of one stream, link or visitor a round is far above it.
RSS_SHARE: Final = 0.15
RSS_ROOM: Final = 8 * MIB
# The same counts for so long are those of a process at rest.
STILL: Final = 2.0
GLANCE: Final = 0.1
# What lets go by a timer: visitors who wait for an agent, handshakes, links that nobody replaced,
# and the longest, for a minute: whoever counts the log lines held back in a flood of strangers.
SETTLE: Final = 75.0


@dataclass(frozen=True, slots=True)
class Held:
    descriptors: int
    tasks: int
    rss: int  # bytes

    @property
    def counts(self) -> tuple[int, int]:
        return self.descriptors, self.tasks


class Gauge:
    """Of one process."""

    def __init__(self, name: str, program: Relay | Agent, tasks: Path) -> None:
        self.name = name
        self._program = program
        self._tasks = tasks
        self.readings: list[Held] = []

    def read(self) -> Held:
        process = Path("/proc") / str(self._program.process.pid)
        status = (process / "status").read_text()
        rss = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return Held(
            descriptors=sum(1 for _ in (process / "fd").iterdir()),
            tasks=int(self._tasks.read_bytes()),
            rss=int(rss.split()[1]) * 1024,
        )

    @property
    def level(self) -> Held | None:
        """After warm-up."""
        return self.readings[0] if self.readings else None

    def excess(self) -> str:
        """What is above the level, in words; nothing if all is well."""
        level, last = self.readings[0], self.readings[-1]
        wrong = []
        if last.descriptors > level.descriptors:
            wrong.append(f"{last.descriptors} descriptors instead of {level.descriptors}")
        if last.tasks > level.tasks:
            wrong.append(f"{last.tasks} tasks instead of {level.tasks}")
        if last.rss > level.rss * (1 + RSS_SHARE) + RSS_ROOM:
            wrong.append(f"{last.rss / MIB:.1f} MiB instead of {level.rss / MIB:.1f}")
        return f"{self.name}: {', '.join(wrong)}" if wrong else ""


def settle(gauges: list[Gauge]) -> None:
    """Wait until nothing moves any more and, if there is a level, all are back at it; then note."""
    deadline = time.monotonic() + SETTLE
    seen, since = [gauge.read().counts for gauge in gauges], time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(GLANCE)
        now = [gauge.read().counts for gauge in gauges]
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since >= STILL and all(map(_at_its_level, gauges)):
            break
    for gauge in gauges:
        gauge.readings.append(gauge.read())


def _at_its_level(gauge: Gauge) -> bool:
    level, now = gauge.level, gauge.read()
    return level is None or (now.descriptors <= level.descriptors and now.tasks <= level.tasks)
