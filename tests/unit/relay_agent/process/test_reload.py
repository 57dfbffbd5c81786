from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.process.address import HostPort
from protocol.process.config import ConfigError
from protocol.process.state import StateError, StateFolder
from protocol.wire.noise import StaticKey
from relay_agent.commands import reload as reload_command
from relay_agent.config import AgentConfig
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.process.reload import Outcome, Reload, Settings
from relay_agent.services.service import Service
from tests.support.log_records import events

RELAY = RelayIdentity(hosts=[HostPort("a.example", 7022)], key=b"k" * 32)
SSH = Service("ssh", HostPort("127.0.0.1", 22), 11111)
WEB = Service("web", HostPort("127.0.0.1", 80), 11112)
BEFORE = Settings(config=AgentConfig(), services=[SSH], relay=RELAY, public_key=b"p" * 32)
ADDED = "services added: web\noptions changed: replay\n"
RESTART = "another relay or another key of this agent: not before a restart\n"
NOTHING = Outcome(added=[], removed=[], changed=[], options=[], restart=[])


class FakeAgent:
    def __init__(self) -> None:
        self.relay, self.public_key = RELAY, BEFORE.public_key
        self.told: list[object] = []

    def reconfigure(self, *what: object) -> None:
        self.told.append(what)


class Files:
    """What is in them, and the agent that is to go by it."""

    def __init__(self) -> None:
        self.now: Settings | Exception = BEFORE
        self.agent = FakeAgent()
        self.reload = Reload(BEFORE, self.read, self.agent)  # type: ignore[arg-type]  # a fake

    def read(self) -> Settings:
        if isinstance(self.now, Exception):
            raise self.now
        return self.now


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def test_what_has_changed_is_named_and_in_effect(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = replace(AgentConfig(), detached_keep=60.0)
    files.now = replace(BEFORE, config=config, services=[WEB])
    outcome = replace(NOTHING, added=["web"], removed=["ssh"], options=["detached_keep"])
    assert files.reload() == outcome
    assert files.agent.told == [(config, [WEB], RELAY.hosts)]
    (line,) = events(caplog, "reloaded")
    assert (line["added"], line["removed"], line["options"]) == (
        ["web"],
        ["ssh"],
        ["detached_keep"],
    )
    assert files.reload() == NOTHING


@pytest.mark.parametrize(
    "change",
    [{"port": 5}, {"target": HostPort("127.0.0.1", 23)}, {"proxy_protocol": "v1"}],
)
def test_a_service_that_is_another_now_is_changed(files: Files, change: dict[str, object]) -> None:
    files.now = replace(BEFORE, services=[replace(SSH, **change)])  # type: ignore[arg-type]  # by name
    assert files.reload() == replace(NOTHING, changed=["ssh"])


@pytest.mark.parametrize("wrong", [ConfigError("agent.toml: no"), StateError("agent.toml: no")])
def test_what_is_wrong_changes_nothing(
    files: Files, wrong: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    files.now = wrong
    with pytest.raises(type(wrong), match=r"agent\.toml: no"):
        files.reload()
    assert not files.agent.told
    assert events(caplog, "reload-refused")[0]["reason"] == "agent.toml: no"


def test_another_address_of_the_relay_is_dialled_next(files: Files) -> None:
    hosts = [HostPort("b.example", 7022)]
    files.now = replace(BEFORE, relay=replace(RELAY, hosts=hosts))
    assert files.reload() == replace(NOTHING, options=["hosts"])
    assert files.agent.told == [(AgentConfig(), [SSH], hosts)]


@pytest.mark.parametrize(
    "other",
    [
        {"public_key": StaticKey.generate().public},
        {"relay": replace(RELAY, key=b"x" * 32, hosts=[HostPort("b.example", 1)])},
    ],
)
def test_another_relay_or_key_waits_for_a_restart(files: Files, other: dict[str, object]) -> None:
    files.now = replace(BEFORE, services=[SSH, WEB], **other)  # type: ignore[arg-type]  # by name
    assert files.reload() == replace(NOTHING, added=["web"], restart=["enrolment"])
    assert files.agent.told == [(AgentConfig(), [SSH, WEB], RELAY.hosts)]
    # Said each time, as long as it is so.
    assert files.reload() == replace(NOTHING, restart=["enrolment"])


def test_a_relay_that_rotated_its_key_is_the_same(files: Files) -> None:
    for file, known in (
        (replace(RELAY, successor=b"s" * 32), RELAY),
        (replace(RELAY, key=b"s" * 32), replace(RELAY, successor=b"s" * 32)),
        (replace(RELAY, key=b"t" * 32), replace(RELAY, key=b"t" * 32)),
    ):
        files.now, files.agent.relay = replace(BEFORE, relay=file), known
        assert files.reload() == NOTHING


def test_so_is_an_agent_that_rotated_its_own(files: Files) -> None:
    files.agent.public_key = b"q" * 32
    files.now = replace(BEFORE, public_key=b"q" * 32)
    assert files.reload() == NOTHING


def test_the_log_level_is_changed_at_once(files: Files) -> None:
    files.now = replace(BEFORE, config=replace(AgentConfig(), log_level="error"))
    assert files.reload().options == ["log_level"]
    assert logging.getLogger().level == logging.ERROR


@pytest.mark.parametrize(
    ("changed", "restart", "out", "err"),
    [
        ({}, [], "nothing has changed\n", ""),
        ({"added": ["web"], "options": ["replay"]}, [], ADDED, ""),
        ({}, ["enrolment"], "", RESTART),
    ],
)
def test_the_command_tells_what_has_changed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    changed: dict[str, list[str]],
    restart: list[str],
    out: str,
    err: str,
) -> None:
    nothing: dict[str, list[str]] = {
        name: [] for name in ("added", "removed", "changed", "options")
    }
    answer = {**nothing, **changed, "restart": restart}
    monkeypatch.setattr(reload_command, "ask", lambda *_: answer)
    reload_command.run(argparse.Namespace(), StateFolder(tmp_path))
    assert capsys.readouterr() == (out, err)
