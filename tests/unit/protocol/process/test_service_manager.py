from __future__ import annotations

from pathlib import Path

import pytest

from protocol.process import service_manager
from protocol.process.service_manager import has_systemd, how_to_start


@pytest.mark.parametrize(
    ("files", "command"),
    [
        (["init.d/relay-agent"], "service relay-agent restart"),
        (["running/", "units/relay-agent.service"], "sudo systemctl restart relay-agent"),
        (["running/"], "relay-agent run"),
        (["units/relay-agent.service"], "relay-agent run"),  # in a container, for instance
        (["init.d/relay-server", "running/", "units/relay-server.service"], "relay-agent run"),
        ([], "relay-agent run"),
    ],
)
def test_a_program_is_started_as_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], command: str
) -> None:
    for name, folder in (("SYSTEMD", "running"), ("INIT_SCRIPTS", "init.d"), ("UNITS", "units")):
        monkeypatch.setattr(service_manager, name, tmp_path / folder)
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        if file.endswith("/"):
            (tmp_path / file).mkdir()
        else:
            (tmp_path / file).touch()
    assert how_to_start("relay-agent") == command
    assert has_systemd() is ("running/" in files)
