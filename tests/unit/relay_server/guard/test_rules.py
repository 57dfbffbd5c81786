from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from protocol.process.config import ConfigError
from relay_server import CONFIG_FILE
from relay_server.config import ServerConfig, load_config
from relay_server.guard.guard import Caps
from relay_server.guard.rules import (
    FOR_OTHERS,
    FOR_SSH,
    FORMER_KEYS,
    MAX_PATTERN,
    MAX_TABLES,
    GuardTable,
    check_patterns,
    rules_for,
)
from relay_server.net.networks import parse_networks


def load(folder: Path, toml: str) -> ServerConfig:
    (folder / CONFIG_FILE).write_text(toml)
    return load_config(None, folder)


def test_without_any_table_the_name_tells_an_ssh_server() -> None:
    for service in ("ssh", "sshd", "my-ssh2", "SSH", "OpenSSH"):
        assert rules_for({}, "home", service) == FOR_SSH
    for service in ("web", "shell"):
        assert rules_for({}, "home", service) == FOR_OTHERS


def test_what_is_below_what_ssh_servers_bear_by_default() -> None:
    # dropbear: 5 an address (MAX_UNAUTH_PER_IP), 30 in all; OpenSSH: MaxStartups 10:30:100.
    assert FOR_SSH.caps.unauthenticated_per_source < 5
    assert FOR_SSH.caps.unauthenticated < 10


@pytest.mark.parametrize(
    ("pattern", "agent", "service", "fits"),
    [
        ("web", "home", "web", True),
        ("web", "home", "web2", False),
        ("w*", "home", "web2", True),
        ("w?b", "home", "wab", True),
        ("[wx]eb", "home", "xeb", True),
        ("WEB", "home", "web", False),
        ("*", "home", "anything", True),
        ("home/web", "home", "web", True),
        ("home/web", "work", "web", False),
        ("home/*", "home", "ssh", True),
        ("*/web", "work", "web", True),
        ("h*/w*", "home", "web", True),
        # What an agent calls its service makes it nobody else.
        ("home/web", "evil", "home/web", False),
        ("home", "home", "web", False),
    ],
)
def test_a_pattern_is_of_a_service_or_of_an_agents_service(
    pattern: str, agent: str, service: str, fits: bool
) -> None:
    rules = rules_for({pattern: GuardTable(per_source=7)}, agent, service)
    assert (rules.per_source == 7) is fits


def test_the_first_table_that_fits_holds_and_no_other(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [guard."home/w*"]
        per_source = 1
        [guard.web]
        per_source = 2
        patience = "1s"
        [guard."*"]
        per_source = 3
        [guard.late]
        per_source = 4
        """,
    )
    assert config.rules("home", "web") == replace(FOR_OTHERS, per_source=1)
    assert config.rules("work", "web") == replace(FOR_OTHERS, per_source=2, patience=1.0)
    assert config.rules("work", "late") == replace(FOR_OTHERS, per_source=3)
    assert config.rules("work", "ssh") == replace(FOR_SSH, per_source=3)


def test_what_a_table_leaves_out_fits_what_it_is_about(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [guard.shell]
        ssh = true
        [guard.ssh-over-websocket]
        ssh = false
        deny = ["203.0.113.0/24"]
        [guard.sshd]
        enabled = false
        """,
    )
    assert config.rules("home", "shell") == FOR_SSH
    denied = parse_networks(["203.0.113.0/24"])
    assert config.rules("home", "ssh-over-websocket") == replace(FOR_OTHERS, deny=denied)
    assert config.rules("home", "sshd") == replace(FOR_SSH, enabled=False)


def test_every_setting_has_a_place(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [guard.ssh]
        allow = ["2001:db8::/32"]
        hold = "500ms"
        per_source = 1
        unauthenticated_per_source = 2
        unauthenticated = 3
        waiting = 4
        patience = 5
        """,
    )
    rules = config.rules("home", "ssh")
    assert (rules.hold, rules.patience) == (0.5, 5.0)
    expected = Caps(per_source=1, unauthenticated_per_source=2, unauthenticated=3, waiting=4)
    assert rules.caps == expected
    assert not rules.admission.allows("203.0.113.9")
    assert rules.admission.allows("2001:db8::9")


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[guard.ssh]\nunauthenticatd = 3", "guard.ssh.unauthenticatd: unknown key; did you mean "),
        (
            '[guard."home/*"]\nunauthenticated = -1',
            "guard.'home/*'.unauthenticated: expected 0 to 65535, not -1",
        ),
        ("[guard.ssh]\nhold = '11s'", "guard.ssh.hold: expected 0s to 10s, not '11s'"),
        ("[guard.ssh]\npatience = '2m'", "guard.ssh.patience: expected 0s to 60s, not '2m'"),
        (
            "[guard.ssh]\nwaiting = 0",
            "guard.ssh.waiting: expected 1 to 4096, not 0",
        ),
        ("[guard.ssh]\nenabled = 1", "guard.ssh.enabled: expected true or false, not 1"),
        ("[guard.ssh]\ndeny = ['x']", "guard.ssh.deny: expected an address or a network such as"),
        ("[guard]\nssh = true", "guard.ssh: expected a table, not True"),
        ("guard = 1", "guard: expected a table, not 1"),
        ("[guard.'/web']", "guard: expected SERVICE or AGENT/SERVICE, perhaps with *, not '/web'"),
        ("[guard.'home/']", "guard: expected SERVICE or AGENT/SERVICE, perhaps with *, not 'ho"),
        ("[guard.'']", "guard: expected SERVICE or AGENT/SERVICE, perhaps with *, not ''"),
        ('[guard."a\\u001bb"]', "guard: expected SERVICE or AGENT/SERVICE, perhaps with *, not"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, toml: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml)
    assert str(caught.value).startswith(f"{tmp_path / CONFIG_FILE}: {said}")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(("former", "key"), FORMER_KEYS.items())
def test_a_former_key_is_refused_with_the_present_one(
    tmp_path: Path, former: str, key: str
) -> None:
    at_top = key in {one.name for one in fields(ServerConfig)}
    where, table = ("", "") if at_top else ("guard.'home/*'.", '[guard."home/*"]\n')
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"{table}{former} = 3")
    said = f"{tmp_path / CONFIG_FILE}: {where}{former}: this key is called {key} now"
    assert str(caught.value) == said
    assert key in {one.name for one in fields(ServerConfig if at_top else GuardTable)}


def test_a_former_key_of_another_table_is_just_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="waiting_visitors: unknown key; "):
        load(tmp_path, "waiting_visitors = 3")


def test_tables_and_patterns_have_bounds() -> None:
    check_patterns({f"a{number}": GuardTable() for number in range(MAX_TABLES)})
    with pytest.raises(ValueError, match=f"at most {MAX_TABLES} tables, not {MAX_TABLES + 1}"):
        check_patterns({f"a{number}": GuardTable() for number in range(MAX_TABLES + 1)})
    check_patterns({"a" * MAX_PATTERN: GuardTable()})
    with pytest.raises(ValueError, match="expected SERVICE or AGENT/SERVICE"):
        check_patterns({"a" * (MAX_PATTERN + 1): GuardTable()})
