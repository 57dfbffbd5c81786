"""Settings for all tests, and the options of a run.

Those of the lab stand here too, since pytest reads this file before it looks for tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more about what else the machine does than about the code; and a
# failure found by chance has to be repeatable from what it printed.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")

LAB = Path(__file__).parent / "lab"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lab", "network lab (needs root, /dev/net/tun and iproute2)")
    group.addoption("--no-lab", action="store_true", help="leave out the tests of the network lab")
    group.addoption(
        "--lab-full", action="store_true", help="let each fault last as long as it may in life"
    )
    group.addoption("--lab-seed", type=int, help="the seed that a failed test of the lab printed")
    group = parser.getgroup("soak")
    group.addoption("--soak-minutes", type=float, default=0.1, help="0.1 unless `make soak` asks")
    group.addoption("--soak-seed", type=int, help="the seed that a soak printed")


def pytest_report_header(config: pytest.Config) -> str:
    if config.getoption("--no-lab"):
        return "lab: left out, as --no-lab says"
    return f"lab: {'full' if config.getoption('--lab-full') else 'short'} lengths"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--no-lab"):
        return
    left_out = [item for item in items if LAB in item.path.parents]
    items[:] = [item for item in items if LAB not in item.path.parents]
    config.hook.pytest_deselected(items=left_out)


def _by_fault(row: dict[str, str]) -> tuple[str, bool, str]:
    """The same fault of ours and of others, ours first."""
    return row["fault"], row["by"] != "ssh-relay", row["by"]


def _by_bots(row: dict[str, str]) -> tuple[str, str, str]:
    return row["bots"], row["by"], row["server"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The tables of faults and of bots, of those tests that measured one."""
    properties = [
        (name, value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if isinstance(value, dict)
    ]
    for title, name, order in (("faults", "fault", _by_fault), ("bots", "bots", _by_bots)):
        rows = sorted((value for kind, value in properties if kind == name), key=order)
        if rows:
            terminalreporter.section(title)
            _write_table(terminalreporter, rows)


def _write_table(terminalreporter: pytest.TerminalReporter, rows: list[dict[str, str]]) -> None:
    columns = list(rows[0])
    widths = [max(len(str(row[key])) for row in [*rows, dict.fromkeys(columns)]) for key in columns]
    widths = [max(width, len(key)) for width, key in zip(widths, columns, strict=True)]
    for cells in (columns, *(list(row.values()) for row in rows)):
        line = "  ".join(str(c).ljust(w) for c, w in zip(cells, widths, strict=True))
        terminalreporter.write_line(line.rstrip())
