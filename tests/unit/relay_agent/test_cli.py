from __future__ import annotations

import importlib
import io
import logging
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import relay_agent.join
import relay_agent.process.run
from protocol import __version__
from protocol.process.address import HostPort
from protocol.process.cli.command import CommandFailed
from protocol.process.state import StateFolder
from protocol.wire.invitation import Invitation
from relay_agent import cli
from relay_agent.commands.join import MAX_PASTED
from relay_agent.config import AgentConfig
from relay_agent.identity.enrolment import LOCK, Enrolment, load_or_make_key, save_enrolment
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.services.service import Service

INVITATION = Invitation(
    hosts=(("relay.test", 7022),), relay_key=bytes(range(32)), token=bytes(range(16))
)
SSH = Service("ssh", HostPort("127.0.0.1", 22), 11111)
ENROLMENT = Enrolment(
    name="home",
    relay=RelayIdentity(hosts=(HostPort("relay.test", 7022),), key=bytes(32)),
    services=(SSH,),
)


@dataclass
class Calls:
    """What the commands were started with, and how they end."""

    made: list[tuple[Any, ...]] = field(default_factory=list)
    end: BaseException | None = None

    def note(self, *call: Any) -> None:
        self.made.append(call)
        if self.end is not None:
            raise self.end


@pytest.fixture(autouse=True)
def root_logger() -> Any:
    """Each command configures the logs of its process, which is this one here."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:], logging.raiseExceptions = before[0], before[2]
    root.setLevel(before[1])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()

    async def serve(config: Any, services: Any, dialer: Any, state: Any, make_reload: Any) -> None:
        calls.note(config, services, dialer)

    async def join(invitation: Any, services: Any, *, config: Any, state: Any) -> None:
        calls.note(invitation, services, config, state)

    monkeypatch.setattr(relay_agent.process.run, "serve", serve)
    monkeypatch.setattr(relay_agent.join, "join", join)
    return calls


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


@pytest.fixture
def joined(state: StateFolder) -> StateFolder:
    state.ensure()
    load_or_make_key(state, b"t" * 16)
    save_enrolment(state, ENROLMENT)
    return state


def join(state: StateFolder, *arguments: str) -> int:
    return cli.main(["join", "--state-dir", str(state.path), *arguments])


def run(state: StateFolder, *arguments: str) -> int:
    return cli.main(["run", "--state-dir", str(state.path), *arguments])


def type_in(monkeypatch: pytest.MonkeyPatch, data: bytes, *, terminal: bool = False) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(data))
    monkeypatch.setattr(stdin, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stdin", stdin)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"relay-agent: [^\n]+\n", output.err)
    return output.err.removeprefix("relay-agent: ").rstrip("\n")


# --- join


def test_join_takes_the_invitation_and_finds_services_itself(
    calls: Calls, state: StateFolder
) -> None:
    assert join(state, INVITATION.encode()) == 0
    assert calls.made == [(INVITATION, [], AgentConfig(), state)]


def test_join_takes_services(calls: Calls, state: StateFolder) -> None:
    arguments = ["--service", "ssh=127.0.0.1:22@11111", "--service", "web=[::1]:80"]
    assert join(state, INVITATION.encode(), *arguments) == 0
    assert calls.made[0][1] == [SSH, Service("web", HostPort("::1", 80))]


def test_join_reads_standard_input_to_its_end(
    calls: Calls, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = INVITATION.encode()
    type_in(monkeypatch, f"{text[:40]}\n  {text[40:]}\n".encode())
    assert join(state) == 0
    assert calls.made[0][0] == INVITATION


def test_join_asks_at_a_terminal_for_one_line(
    calls: Calls,
    state: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    type_in(monkeypatch, f"{INVITATION.encode()}\nmore".encode(), terminal=True)
    assert join(state) == 0
    assert calls.made[0][0] == INVITATION
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("Paste the invitation")


@pytest.mark.parametrize("data", [b"", b" \n"])
def test_nothing_pasted(
    calls: Calls,
    state: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: bytes,
) -> None:
    type_in(monkeypatch, data)
    assert join(state) == 2
    assert one_line(capsys).startswith("expected an invitation")
    assert calls.made == []


def test_no_standard_input_at_all(
    calls: Calls,
    state: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert join(state) == 2
    assert one_line(capsys).startswith("expected an invitation")


@pytest.mark.parametrize("data", [b"\xff\xfe", b"x" * (MAX_PASTED + 1)])
def test_something_else_pasted(
    calls: Calls,
    state: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: bytes,
) -> None:
    type_in(monkeypatch, data)
    assert join(state) == 2
    assert one_line(capsys).startswith("not an invitation")


def test_a_mistyped_invitation_is_not_shown_again(
    calls: Calls, state: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = INVITATION.encode()[:-1]
    assert join(state, cut) == 2
    line = one_line(capsys)
    assert "cut short or mistyped" in line
    assert cut[10:] not in line
    assert calls.made == []


@pytest.mark.parametrize(
    ("services", "expected"),
    [
        (["ssh"], "--service: expected NAME=HOST:PORT"),
        (["ssh=h:1", "ssh=h:2"], "service ssh is given twice"),
        (["a=h:1@5", "b=h:2@5"], "services a and b both ask for port 5"),
    ],
)
def test_wrong_services_are_told_before_the_invitation_is_asked_for(
    calls: Calls,
    state: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    services: list[str],
    expected: str,
) -> None:
    monkeypatch.delattr(sys, "stdin")
    assert join(state, *[part for text in services for part in ("--service", text)]) == 2
    assert one_line(capsys).startswith(expected)
    assert not state.path.exists()


def test_a_failed_join_is_one_line_and_status_1(
    calls: Calls, state: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.end = CommandFailed("the relay refuses")
    assert join(state, INVITATION.encode()) == 1
    assert one_line(capsys) == "the relay refuses"


def test_ctrl_c_during_join_is_quiet(
    calls: Calls, state: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.end = KeyboardInterrupt()
    assert join(state, INVITATION.encode()) == 130
    assert capsys.readouterr() == ("", "")


# --- run


def test_run_serves_what_join_saved(calls: Calls, joined: StateFolder) -> None:
    assert run(joined) == 0
    [(config, services, dialer)] = calls.made
    assert (config, dialer.relay, services) == (AgentConfig(), ENROLMENT.relay, (SSH,))
    assert dialer.agent_keys.newest.private.hex() in (joined.path / "agent.key").read_text()


def test_run_takes_a_config_file(calls: Calls, joined: StateFolder, tmp_path: Path) -> None:
    config = tmp_path / "my.toml"
    config.write_text('max_streams = 3\n[services.ssh]\ntarget = "h:1"\n')
    assert run(joined, "--config", str(config)) == 0
    assert calls.made[0][0].max_streams == 3
    assert calls.made[0][1] == (Service("ssh", HostPort("h", 1), 11111),)


def test_services_on_the_command_line_replace_all_others(
    calls: Calls, joined: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (joined.path / "agent.toml").write_text('[services.ssh]\ntarget = "h:1"\nport = 5\n')
    assert run(joined, "--service", "ssh=[::1]:22", "--service", "web=h:80@6") == 0
    assert calls.made[0][1] == (
        Service("ssh", HostPort("::1", 22), 5),
        Service("web", HostPort("h", 80), 6),
    )
    for service, complaint in (
        ("web=h:80", "--service web: public port: missing; expected"),
        ("web", "--service: expected NAME=HOST:PORT"),
    ):
        assert run(joined, "--service", service) == 2
        assert one_line(capsys).startswith(complaint)


@pytest.mark.parametrize("library", ["cryptography", "msgpack"])
def test_a_missing_library_is_named(joined: StateFolder, library: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None; import relay_agent.__main__ as m; m.main()"
    )
    arguments = ["run", "--state-dir", str(joined.path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.fullmatch(
        rf"relay-agent: the Python library {library} is missing; install python3-{library} with"
        r" opkg or apk,.* 24\.10.*\n",
        done.stderr,
    )


def test_another_missing_module_is_a_bug(calls: Calls, joined: StateFolder) -> None:
    calls.end = ModuleNotFoundError(name="relay_agent.something")
    with pytest.raises(ModuleNotFoundError):
        run(joined)


def test_run_before_join(
    calls: Calls, state: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(state) == 2
    assert "not joined yet; run: relay-agent join" in one_line(capsys)
    assert not state.path.exists()


def test_a_wrong_configuration_stops_the_start(
    calls: Calls, joined: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (joined.path / "agent.toml").write_text("max_streams = 0")
    assert run(joined) == 2
    assert one_line(capsys).startswith(f"{joined.path}/agent.toml: max_streams: expected 1 to")
    assert calls.made == []


@pytest.mark.parametrize("arguments", [["run"], ["join", INVITATION.encode()]])
def test_a_second_agent_on_the_same_state_is_refused(
    calls: Calls,
    joined: StateFolder,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    with joined.lock(LOCK):
        assert cli.main([*arguments, "--state-dir", str(joined.path)]) == 2
    assert "already in use by another process" in one_line(capsys)
    assert calls.made == []


@pytest.mark.parametrize(
    ("file", "before", "after", "level"),
    [
        ("", [], [], logging.INFO),
        ('log_level = "error"', [], [], logging.ERROR),
        ('log_level = "error"', ["--log-level", "debug"], [], logging.DEBUG),
        ('log_level = "error"', [], ["--log-level", "debug"], logging.DEBUG),
    ],
)
def test_the_command_line_overrides_the_file(
    calls: Calls,
    joined: StateFolder,
    file: str,
    before: Sequence[str],
    after: Sequence[str],
    level: int,
) -> None:
    (joined.path / "agent.toml").write_text(file)
    assert cli.main([*before, "run", "--state-dir", str(joined.path), *after]) == 0
    assert cli.main(["--state-dir", str(joined.path), *before, "run", *after]) == 0
    assert logging.getLogger().level == level


@pytest.mark.parametrize(
    ("options", "level"), [([], logging.WARNING), (["--log-level", "info"], logging.INFO)]
)
def test_join_does_not_mix_what_goes_as_planned_into_its_own_words(
    calls: Calls, joined: StateFolder, options: Sequence[str], level: int
) -> None:
    arguments = ["join", INVITATION.encode(), "--state-dir", str(joined.path)]
    assert cli.main([*arguments, *options]) == 0
    assert logging.getLogger().level == level


def test_the_default_state_folder(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "protocol.process.cli.command_line.default_state_dir", lambda program: tmp_path / program
    )
    assert cli.main(["join", INVITATION.encode()]) == 0
    assert calls.made[0][3] == StateFolder(tmp_path / "relay-agent")


# --- the rest


@pytest.mark.parametrize("arguments", [["--help"], ["join", "--help"], ["run", "--help"]])
def test_help_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"relay-agent {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["jion"], ["run", "extra"], ["run", "--conf", "x"]])
def test_a_wrong_command_line_is_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "relay-agent" in capsys.readouterr().err


def test_the_module_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["relay-agent", "--version"])
    runs = (
        lambda: importlib.import_module("relay_agent.__main__").main(),
        lambda: runpy.run_module("relay_agent", run_name="__main__"),
    )
    for start in runs:
        with pytest.raises(SystemExit) as left:
            start()
        assert left.value.code == 0
        assert capsys.readouterr().out == f"relay-agent {__version__}\n"
        monkeypatch.delitem(sys.modules, "relay_agent.__main__", raising=False)


def test_help_needs_neither_trio_nor_cryptography() -> None:
    """They cost a router seconds."""
    script = """
import sys
from relay_agent import cli
try:
    cli.main(["run", "--help"])
except SystemExit:
    print(sorted({"trio", "cryptography", "msgpack", "ssl", "sqlite3"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"[]"


def test_a_changed_network_while_it_is_being_imported_does_not_end_it() -> None:
    code = "import os, signal, relay_agent.__main__; os.kill(os.getpid(), signal.SIGUSR1)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
