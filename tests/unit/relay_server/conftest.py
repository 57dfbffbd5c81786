from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from protocol.process.state import StateFolder
from relay_server import cli
from relay_server.commands import invite
from relay_server.registry.registry import Registry
from tests.support.relay import Relay, running
from tests.support.relay_commands import NOW, Run


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="relay_server")
    return caplog


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    """With its default configuration. In a test that asks for `mock_clock`, time stands still."""
    async with running(tmp_path) as one:
        yield one


@pytest.fixture
def registry(state: StateFolder) -> Iterator[Registry]:
    with Registry(state) as registry:
        yield registry


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed time, every port free, and logging left as pytest has it."""
    monkeypatch.setattr("time.time", lambda: NOW)
    monkeypatch.setattr(invite, "is_free", lambda port: True)
    monkeypatch.setattr("protocol.process.logs.configure", lambda level, log_format: None)


@pytest.fixture
def run(world: None, state: StateFolder, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main([*arguments, "--state-dir", str(state.path)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def usage(world: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def usage(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return usage
