from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.process.address import HostPort
from protocol.process.state import StateFolder
from protocol.wire.invitation import Invitation
from relay_server.registry.open import LOCK
from relay_server.registry.registry import Registry
from tests.support.relay_commands import Run


class Served:
    """What the server was started with."""

    arguments: tuple[Any, ...] = ()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    served = Served()

    async def serve(*arguments: Any, **_: Any) -> None:
        served.arguments = arguments

    monkeypatch.setattr("relay_server.commands.run.serve", serve)
    return served


def test_run_makes_the_state_and_serves(run: Run, served: Served, state: StateFolder) -> None:
    assert run("run") == (0, "", "")
    config, folder, registry, keys = served.arguments
    assert config.listen == (HostPort("::", 7022),)
    assert folder == state
    assert isinstance(registry, Registry)
    assert (state.read_secret("relay.key") or "").strip() == keys.current.private.hex()
    assert sorted(file.name for file in state.path.iterdir()) == [
        "registry.db",
        "relay.key",
        "run.lock",
    ]


def test_run_remembers_what_invitations_need(run: Run, served: Served, tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text('ports = "500-501"\nlisten = ["[::]:7022"]\nhosts = ["nobody"]\n')
    options = ("--config", str(file), "--listen", "0.0.0.0:443", "--host", "vps")
    assert run("run", *options, "--bind", "127.0.0.1")[0] == 0
    assert served.arguments[0].bind == "127.0.0.1"
    _, out, err = run("invite", "home")
    assert Invitation.decode(out).hosts == (("vps", 443),)
    assert "port 500." in err
    assert run("run", "--listen", "[::]:7022")[0] == 0  # the hosts stay
    _, out, _ = run("invite", "home")
    assert Invitation.decode(out).hosts == (("vps", 443),)


@pytest.mark.parametrize(
    ("toml", "options", "logged"),
    [
        ("", (), ("info", "text")),
        ("log_level = 'debug'\nlog_format = 'json'", (), ("debug", "json")),
        (
            "log_level = 'debug'",
            ("--log-level", "error", "--log-format", "json"),
            ("error", "json"),
        ),
    ],
)
def test_log_options_go_over_the_file(
    run: Run,
    served: Served,
    state: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    toml: str,
    options: tuple[str, ...],
    logged: tuple[str, str],
) -> None:
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr("protocol.process.logs.configure", lambda *how: configured.append(how))
    state.ensure()
    (state.path / "server.toml").write_text(toml)
    assert run("run", *options)[0] == 0
    assert configured[-1] == logged


def test_a_second_server_on_one_state_folder_is_refused(
    run: Run, served: Served, state: StateFolder
) -> None:
    state.ensure()
    with state.lock(LOCK):
        status, _, err = run("run")
    assert (status, err) == (
        2,
        f"relay-server: {state.path}: already in use by another process\n",
    )
    assert served.arguments == ()


def test_a_wrong_file_stops_the_start(run: Run, served: Served, state: StateFolder) -> None:
    state.ensure()
    (state.path / "server.toml").write_text("lisen = 5")
    assert run("run") == (
        2,
        "",
        f"relay-server: {state.path / 'server.toml'}: lisen: unknown key; did you mean listen?\n",
    )
    assert run("run", "--config", "/none")[2] == "relay-server: /none: no such file\n"
