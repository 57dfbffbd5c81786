"""The command lines: what goes to standard output, what to standard error, and the status."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol import __version__
from tests.support.house import House
from tests.support.ports import free_port
from tests.support.processes import plain_environment, run, script
from tests.support.programs import Agent, Relay, assert_fails, only_line

NewRelay = Callable[..., Relay]
NewAgent = Callable[..., Agent]

COMMANDS = {
    "relay-server": ["run", "invite", "invitations", "agents", "revoke", "status", "doctor"],
    "relay-agent": ["join", "run", "status", "doctor", "rotate-key"],
}
EACH_PROGRAM = pytest.mark.parametrize("program", COMMANDS)


def call(tmp_path: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run([script(program), *arguments], environment=plain_environment(tmp_path))


@EACH_PROGRAM
def test_version(tmp_path: Path, program: str) -> None:
    done = call(tmp_path, program, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert only_line(done.stdout) == f"{program} {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        (program, *command, "--help")
        for program, commands in COMMANDS.items()
        for command in ([], *([name] for name in commands))
    ],
    ids=" ".join,
)
def test_help(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = call(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {arguments[0]}")
    if len(arguments) == 2:
        for command in COMMANDS[arguments[0]]:
            assert re.search(rf"^ +{command}\b", done.stdout, re.MULTILINE), command
    assert not list(tmp_path.iterdir()), "asking for help leaves nothing behind"


@EACH_PROGRAM
@pytest.mark.parametrize("arguments", [(), ("dance",), ("run", "--dance"), ("--log-level", "loud")])
def test_usage_errors(tmp_path: Path, program: str, arguments: tuple[str, ...]) -> None:
    done = call(tmp_path, program, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"{program}")
    assert "Traceback" not in done.stderr


def test_invite_says_the_invitation_and_nothing_else(new_relay: NewRelay) -> None:
    relay = new_relay()
    done = relay.cli("invite", "home", "--port", "11111", "--host", "relay.example")
    assert done.returncode == 0
    assert re.fullmatch(r"relay1_[a-z2-7]+\n", done.stdout)
    assert "relay-agent join" in done.stderr


def test_invite_needs_a_host_once(new_relay: NewRelay) -> None:
    relay = new_relay()
    assert_fails(relay.cli("invite", "home"), "--host")
    relay.invite("home", hosts=["relay.example"])
    relay.invite("cabin")  # remembered


def test_a_granted_port_is_refused_by_its_holders_name(new_relay: NewRelay) -> None:
    relay = new_relay()
    relay.invite("home", 11111, hosts=["relay.example"])
    done = relay.cli("invite", "cabin", "--port", "11111")
    assert_fails(done, "11111", "home")
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("invite", "../home"),
        ("invite", ""),
        ("invite", "home", "--port", "0"),
        ("invite", "home", "--port", "65536"),
        ("invite", "home", "--port", "ssh"),
        ("invite", "home", "--expires", "soon"),
        ("invite", "home", "--host", "relay.example:0"),
        ("run", "--listen", "nonsense:port"),
        ("run", "--bind", "nonsense"),
    ],
    ids=" ".join,
)
def test_values_that_cannot_be(new_relay: NewRelay, arguments: tuple[str, ...]) -> None:
    done = new_relay().cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("revoke", "nobody"), ("invitations", "--cancel", "nobody")], ids=" ".join
)
def test_a_name_that_is_not_there(new_relay: NewRelay, arguments: tuple[str, ...]) -> None:
    relay = new_relay()
    relay.invite("home", hosts=["relay.example"])
    assert_fails(relay.cli(*arguments), "nobody")


def test_lists_for_people_and_for_machines(house: House) -> None:
    house.relay.invite("cabin", free_port())
    for command, name in (("agents", "home"), ("invitations", "cabin")):
        for_people = house.relay.cli(command)
        assert (for_people.returncode, for_people.stderr) == (0, "")
        assert name in for_people.stdout
        assert max(map(len, for_people.stdout.splitlines())) <= 80
        for_machines = house.relay.cli(command, "--json")
        assert (for_machines.returncode, for_machines.stderr) == (0, "")
        assert name in json.dumps(json.loads(for_machines.stdout))


def test_the_running_server_tells_of_its_agents(house: House) -> None:
    assert house.relay.agents()["home"]["address"].startswith("127.0.0.1")


@EACH_PROGRAM
@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("replai = 1\n", ["replai", "replay"]),
        ("log_level = 7\n", ["log_level"]),
        ('log_level = "loud"\n', ["log_level", "info"]),
        ('replay = "4 parsecs"\n', ["replay"]),
        ("replay = -1\n", ["replay"]),
        ("replay = \n", ["line 1"]),
        ("[[[\n", ["line 1"]),
    ],
    ids=["unknown", "type", "choice", "size", "range", "syntax", "syntax2"],
)
def test_mistakes_in_the_configuration(
    tmp_path: Path, program: str, toml: str, words: list[str]
) -> None:
    file, state = tmp_path / "mine.toml", tmp_path / "state"
    file.write_text(toml)
    done = call(tmp_path, program, "run", "--config", str(file), "--state-dir", str(state))
    assert (done.returncode, done.stdout) == (2, "")
    line = only_line(done.stderr)
    for word in [program, str(file), *words]:
        assert word in line


@EACH_PROGRAM
def test_a_configuration_that_is_not_there(tmp_path: Path, program: str) -> None:
    file = tmp_path / "none.toml"
    done = call(tmp_path, program, "run", "--config", str(file), "--state-dir", str(tmp_path / "s"))
    assert (done.returncode, done.stdout) == (2, "")
    assert str(file) in only_line(done.stderr)


def test_an_agent_that_has_not_joined(tmp_path: Path) -> None:
    done = call(tmp_path, "relay-agent", "run", "--state-dir", str(tmp_path / "state"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "relay-agent join" in only_line(done.stderr)


@pytest.mark.parametrize("text", ["", "hello", "relay1_", "relay1_abcdefgh", "relay2_abcdefgh"])
def test_no_invitation(new_agent: NewAgent, text: str) -> None:
    done = new_agent().try_join("", stdin=text)
    assert (done.returncode, done.stdout) == (2, "")
    assert "invitation" in only_line(done.stderr)


@pytest.mark.parametrize("service", ["ssh", "ssh=nowhere", "=h:1", "ssh=h:0", "ssh=h:1@99999"])
def test_no_service(new_agent: NewAgent, service: str) -> None:
    done = new_agent().try_join("relay1_abcdefgh", service)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--service" in only_line(done.stderr)


def test_logs_for_machines(new_relay: NewRelay) -> None:
    relay = new_relay(config='log_format = "json"\n')
    process = relay.start()
    process.wait_for_line('"listening"')
    assert process.terminate() == 0, process.describe()
    events = [json.loads(line)["event"] for line in process.log]
    assert events[0] == "listening"
    assert events[-1] == "stopping"
    assert process.stdout == ""
