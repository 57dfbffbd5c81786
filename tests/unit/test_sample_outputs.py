"""Output that the documents show is what the programs print.

A block of a document is parted into commands and what follows them. Each output of ours has a
check: status and tables are laid out anew from their values, findings of a doctor too, and single
sentences are looked up in the source of the command. Lines of logs are compared with docs/logs.md.
"""

from __future__ import annotations

import argparse
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from protocol.errors import ResetCode
from protocol.process import service_manager
from protocol.process.cli.checks import Finding, Step, Verdict, lay_out
from protocol.process.cli.text import Paint
from protocol.process.config import ConfigError
from protocol.process.state import StateFolder
from protocol.wire.invitation import Invitation
from relay_agent.doctor import steps as agent_doctor
from relay_agent.net import dial
from relay_server.agents import status as relay_status
from relay_server.commands import status as status_command
from relay_server.commands.agents import run as run_agents
from relay_server.config import load_config
from relay_server.doctor import steps as relay_doctor
from tests.support.relay_commands import enrol
from tests.support.repository import ROOT
from tests.support.templates import is_sentence, reachable, sentences

# Its translation has the same code (test_readme.py), and these two are written by a program.
LEFT_OUT = {"README.zh-CN.md", "CHANGELOG.md", "cli.md", "configuration.md"}
DOCUMENTS = [
    path
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
    if path.name not in LEFT_OUT
]
PROMPT = re.compile(r"(?:[\w@:~-]*)[$#] (.*)")
OURS = re.compile(r"(?:sudo )?(?:podman exec relay )?(relay-(?:server|agent) \w[\w-]*.*)")


def blocks(document: Path) -> Iterator[tuple[int, list[str]]]:
    """Its blocks of code with the number of their first line; no TOML, no YAML."""
    lines: list[str] = []
    fence = ""
    for number, line in enumerate([*document.read_text().splitlines(), ""], 1):
        if line.startswith("```"):
            if lines and fence in ("```", "```console"):
                yield number - len(lines), lines
            fence, lines = ("", []) if fence else (line, [])
        elif fence or line.startswith("    "):
            lines.append(line)
        elif lines and line:  # an empty one may be inside of a block
            yield number - len(lines), textwrap.dedent("\n".join(lines)).strip("\n").split("\n")
            lines = []
        elif lines:
            lines.append(line)
    if lines:
        yield 0, textwrap.dedent("\n".join(lines)).strip("\n").split("\n")


@dataclass(frozen=True)
class Sample:
    where: str
    command: str
    output: tuple[str, ...]

    def __str__(self) -> str:
        return self.where


def parted(where: str, lines: list[str]) -> Iterator[Sample]:
    """Its commands with what they print; the empty command for a block without one."""
    command, output = "", list[str]()
    for line in [*lines, "$ "]:
        if prompt := PROMPT.fullmatch(line):
            if command or output:
                yield Sample(where, command, tuple(output))
            command, output = prompt[1], []
        elif line.strip() not in ("", "…") or output:
            output.append(line)


SAMPLES = [
    sample
    for document in DOCUMENTS
    for number, lines in blocks(document)
    for sample in parted(f"{document.name}:{number}", lines)
]


# Lines of logs

LOG_LINE = re.compile(r"(?:.* )?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ([A-Z]+) ([\w-]+)((?: .*)?)")
# Event, levels, fields; one that both programs have stands in both their tables.
EVENTS = [
    (name, set(levels.split(", ")), set(fields.replace(" ", "").split(",")))
    for name, levels, fields in re.findall(
        r"^\| `([\w-]+)` \| ([\w, ]+) \|([\w, ]*)\|", (ROOT / "docs" / "logs.md").read_text(), re.M
    )
]


def check_log_line(line: str) -> None:
    match = LOG_LINE.fullmatch(line)
    assert match, line
    level, event, rest = match.groups()
    pairs = [word.partition("=") for word in shlex.split(rest)]
    assert all(equals for _, equals, _ in pairs), line
    assert any(
        name == event and level.lower() in levels and {field for field, _, _ in pairs} <= fields
        for name, levels, fields in EVENTS
    ), line


LOG_LINES = [line for one in SAMPLES for line in one.output if re.search(r"\dZ [A-Z]+ ", line)]


@pytest.mark.parametrize("line", LOG_LINES)
def test_lines_of_logs_are_as_logs_md_has_them(line: str) -> None:
    check_log_line(line)


def test_reasons_in_prose_are_those_of_the_source() -> None:
    """Of `visitor-refused … reason="the agent is away"` and the like."""
    known = [
        pattern
        for package in ("protocol", "relay_server", "relay_agent")
        for path in (ROOT / package).rglob("*.py")
        for pattern in sentences(path.read_text())
    ]
    known += [code.name.lower().replace("_", " ") for code in ResetCode]
    told = {
        reason
        for document in DOCUMENTS
        for reason in re.findall(r'(?:reason|reset)="([^"]+)"', document.read_text())
    }
    assert len(told) > 5
    for reason in told:
        for part in reason.split("; "):
            assert is_sentence(part, known), part


# Doctors

ENTRY = re.compile(r"(ok  |note|FAIL)  (\w+) +(.*)")
VERDICTS = {"ok  ": Verdict.OK, "note": Verdict.NOTE, "FAIL": Verdict.FAILED}
# What may be shown of an error that a step met.
OF_ERRORS = [
    *sentences(Path(dial.__file__).read_text()),
    *sentences((ROOT / "protocol" / "transport" / "handshake.py").read_text()),
    *sentences((ROOT / "relay_server" / "agents" / "handshakes.py").read_text()),
    *sentences((ROOT / "relay_agent" / "services" / "ssh_discovery.py").read_text()),
]


def findings(lines: tuple[str, ...]) -> Iterator[tuple[str, Finding]]:
    entries: list[list[str]] = []
    for line in lines:
        if ENTRY.fullmatch(line):
            entries.append([line])
        elif entries and line.startswith(" " * 17):
            entries[-1].append(line)
    for first, *more in entries:
        verdict, step, found = ENTRY.fullmatch(first).groups()  # type: ignore[union-attr]  # so they were chosen
        text = " ".join([found, *(line.strip() for line in more)])
        found, _, advice = text.partition(" -> ")
        yield step, Finding(VERDICTS[verdict], found, advice)


DOCTORS = [one for one in SAMPLES if any(map(ENTRY.fullmatch, one.output))]


@pytest.mark.parametrize("sample", DOCTORS, ids=str)
def test_findings_of_doctors(sample: Sample) -> None:
    found = list(findings(sample.output))
    assert "".join(lay_out(*one, Paint(on=False)) for one in found).splitlines() == list(
        sample.output
    )
    names = [name for name, _ in found]
    every_step: tuple[Step[Any], ...] = (*agent_doctor.STEPS, *relay_doctor.STEPS)
    for name, finding in found:
        said = [
            pattern for step in every_step if step.name == name for pattern in reachable(step.check)
        ]
        for part in finding.found.split("; "):
            assert is_sentence(part, said + OF_ERRORS), (name, part)
        assert not finding.advice or is_sentence(finding.advice, said), (name, finding.advice)
    if len(found) > 1:
        assert names in (
            [one.name for one in steps.STEPS] for steps in (agent_doctor, relay_doctor)
        )


# What commands print

Check = Callable[[Sample, Path, pytest.MonkeyPatch, pytest.CaptureFixture[str]], None]


def said_in(*modules: str) -> Check:
    """Each line is a sentence of one of these modules."""
    said = [pattern for one in modules for pattern in sentences((ROOT / one).read_text())]

    def check(sample: Sample, *_: object) -> None:
        for line in sample.output:
            assert line == "…" or is_sentence(line, said), line

    return check


def check_invite(sample: Sample, *rest: Any) -> None:
    invitation, *hints = sample.output
    assert Invitation.decode(invitation).hosts == (("vps.example.net", 7022),)
    said_in("relay_server/commands/invite.py")(Sample("", "", tuple(hints)), *rest)


def check_run(sample: Sample, tmp_path: Path, *_: object) -> None:
    for line in sample.output:
        if not LOG_LINE.fullmatch(line):
            refused(line.removeprefix("relay-server: "), tmp_path)


# What is wrong with the file in the documents' refusals.
WRONG = {
    "guard.'home/web'.unauthenticated": '[guard."home/web"]\nunauthenticated = -1',
    "guard.web.hold": '[guard.web]\nhold = "1m"',
}


def refused(line: str, tmp_path: Path) -> None:
    """`line` is what the relay says of a configuration."""
    folder = "/var/lib/relay-server"
    file = tmp_path / "server.toml"
    file.write_text(WRONG[line.removeprefix(f"{folder}/server.toml: ").partition(": ")[0]])
    with pytest.raises(ConfigError) as caught:
        load_config(None, tmp_path)
    assert line == str(caught.value).replace(str(tmp_path), folder)


def check_reload(sample: Sample, tmp_path: Path, *rest: Any) -> None:
    said = said_in("relay_server/commands/reload.py")
    for line in sample.output:
        before, by, why = line.partition("the running process refuses: ")
        if by:
            assert before == "relay-server: "
            refused(why, tmp_path)
        else:
            said(Sample("", "", (line,)), tmp_path, *rest)


def check_join(sample: Sample, *rest: Any) -> None:
    said_in("relay_agent/join.py")(sample, *rest)
    last = sample.output[-1].partition("saved; now run: ")[2]
    assert is_sentence(last, list(sentences(Path(service_manager.__file__).read_text())))


def check_agents(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    state = StateFolder(tmp_path / "state")
    state.ensure()
    enrol(state, "home", 1, 11111)
    home = {
        "name": "home",
        "attached": True,
        "since": 7200.0,
        "streams": 0,
        "address": "198.51.100.7:40122",
        "ports": [11111],
        "refused": {},
        "services": [],
    }
    monkeypatch.setattr(relay_status, "ask", lambda *_: {"agents": [home]})
    run_agents(argparse.Namespace(json=False), state)
    assert capsys.readouterr().out.splitlines() == list(sample.output)


SSH: Final = {"service": "ssh", "port": 11111, "state": "open", "published": True, "refused": {}}


def status_of(relay: float, link: dict[str, Any], *streams: dict[str, Any]) -> dict[str, Any]:
    link = {"links": 1 + link.get("resumed", 0), "resumed": 0, "last_cut": None} | link
    home = {"name": "home", "attached": True, "link": link, "services": [SSH], "waiting": 0}
    home |= {"streams": [{"port": 11111} | one for one in streams]}
    return {
        "version": "0.1.0",
        "age": relay,
        "listening": ["[::]:7022"],
        "agents": [home],
        "absent": [],
    }


STATUS = {
    "container.md": status_of(47, {"age": 3, "address": "198.51.100.7:47452", "rtt": 0.021}),
    "quickstart-openwrt.md": status_of(
        109,
        {"age": 109, "address": "198.51.100.7:56802", "rtt": 0.002},
        {"source": "192.0.2.44", "age": 9, "from_socket": 2300, "to_socket": 1400},
    ),
    "troubleshooting.md": status_of(
        7260,
        {
            "age": 180,
            "address": "198.51.100.7:47452",
            "rtt": 0.021,
            "resumed": 4,
            "last_cut": {"age": 180, "reason": "no sign of life"},
        },
    ),
}


def check_status(sample: Sample, *_: object) -> None:
    status = STATUS[sample.where.partition(":")[0]]
    shown = status_command.lay_out(status, Paint(on=False))
    assert shown.splitlines() == list(sample.output)


def check_doctor(sample: Sample, *_: object) -> None:
    assert sample in DOCTORS  # which have a test of their own


CHECKS: Final[dict[str, Check]] = {
    "relay-server run": check_run,
    "relay-agent run": check_run,
    "relay-server invite": check_invite,
    "relay-agent join": check_join,
    "relay-server agents": check_agents,
    "relay-server status": check_status,
    "relay-server reload": check_reload,
    "relay-server revoke": said_in("relay_server/commands/revoke.py"),
    "relay-server move": said_in("relay_server/commands/move.py"),
    "relay-server export": said_in(
        "relay_server/commands/export.py", "relay_server/commands/import_relay.py"
    ),
    "relay-agent doctor": check_doctor,
}
OF_OURS = [
    (" ".join(match[1].split()[:2]), one)
    for one in SAMPLES
    if (match := OURS.fullmatch(one.command)) and one.output
]


@pytest.mark.parametrize(("command", "sample"), OF_OURS, ids=str)
def test_what_a_command_prints(
    command: str,
    sample: Sample,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A command that has no check yet needs one in CHECKS."""
    CHECKS[command](sample, tmp_path, monkeypatch, capsys)


def test_what_the_installing_script_prints() -> None:
    script = (ROOT / "deploy" / "systemd" / "install").read_text()
    echoed = [
        re.sub(r"\\\$\w+", "(.*)", re.escape(text)) for text in re.findall(r'echo "(.*?)"', script)
    ]
    shown = [
        line
        for one in SAMPLES
        if re.search(r"deploy/systemd/install \S+$", one.command)
        for line in one.output
    ]
    assert shown
    for line in shown:
        version = re.fullmatch(r"relay-(server|agent) \d+\.\d+\.\d+", line)
        assert version or is_sentence(line, echoed), line


def test_the_samples_are_found() -> None:
    assert len(LOG_LINES) > 10
    assert len(DOCTORS) > 5
    assert len(OF_OURS) > 12
