from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from protocol.process.config import ConfigError
from relay_server import CONFIG_FILE
from relay_server.config import ServerConfig, load_config
from relay_server.guard.rules import (
    FOR_OTHERS,
    FOR_SSH,
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
    rules = rules_for({pattern: GuardTable(visitors_per_source=7)}, agent, service)
    assert (rules.visitors_per_source == 7) is fits


def test_the_first_table_that_fits_holds_and_no_other(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [guard."home/w*"]
        visitors_per_source = 1
        [guard.web]
        visitors_per_source = 2
        patience = "1s"
        [guard."*"]
        visitors_per_source = 3
        [guard.late]
        visitors_per_source = 4
        """,
    )
    assert config.rules("home", "web") == replace(FOR_OTHERS, visitors_per_source=1)
    assert config.rules("work", "web") == replace(FOR_OTHERS, visitors_per_source=2, patience=1.0)
    assert config.rules("work", "late") == replace(FOR_OTHERS, visitors_per_source=3)
    assert config.rules("work", "ssh") == replace(FOR_SSH, visitors_per_source=3)


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
        guarded = false
        """,
    )
    assert config.rules("home", "shell") == FOR_SSH
    denied = parse_networks(["203.0.113.0/24"])
    assert config.rules("home", "ssh-over-websocket") == replace(FOR_OTHERS, deny=denied)
    assert config.rules("home", "sshd") == replace(FOR_SSH, guarded=False)


def test_every_setting_has_a_place(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [guard.ssh]
        allow = ["2001:db8::/32"]
        hold = "500ms"
        visitors_per_source = 1
        young_visitors_per_source = 2
        young_visitors = 3
        waiting_visitors = 4
        patience = 5
        """,
    )
    rules = config.rules("home", "ssh")
    assert (rules.hold, rules.patience) == (0.5, 5.0)
    caps = rules.caps
    assert (
        caps.per_source,
        caps.unauthenticated_per_source,
        caps.unauthenticated,
        caps.waiting,
    ) == (1, 2, 3, 4)
    assert not rules.admission.allows("203.0.113.9")
    assert rules.admission.allows("2001:db8::9")


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[guard.ssh]\nyoung_visitor = 3", "guard.ssh.young_visitor: unknown key; did you mean "),
        (
            '[guard."home/*"]\nyoung_visitors = -1',
            "guard.'home/*'.young_visitors: expected 0 to 65535, not -1",
        ),
        ("[guard.ssh]\nhold = '11s'", "guard.ssh.hold: expected 0s to 10s, not '11s'"),
        ("[guard.ssh]\npatience = '2m'", "guard.ssh.patience: expected 0s to 60s, not '2m'"),
        (
            "[guard.ssh]\nwaiting_visitors = 0",
            "guard.ssh.waiting_visitors: expected 1 to 4096, not 0",
        ),
        ("[guard.ssh]\nguarded = 1", "guard.ssh.guarded: expected true or false, not 1"),
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


def test_tables_and_patterns_have_bounds() -> None:
    check_patterns({f"a{number}": GuardTable() for number in range(MAX_TABLES)})
    with pytest.raises(ValueError, match=f"at most {MAX_TABLES} tables, not {MAX_TABLES + 1}"):
        check_patterns({f"a{number}": GuardTable() for number in range(MAX_TABLES + 1)})
    check_patterns({"a" * MAX_PATTERN: GuardTable()})
    with pytest.raises(ValueError, match="expected SERVICE or AGENT/SERVICE"):
        check_patterns({"a" * (MAX_PATTERN + 1): GuardTable()})
