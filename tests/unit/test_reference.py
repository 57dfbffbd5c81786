"""The pages and examples that docs/reference.py writes are as it would write them now, and true."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from docs.reference import PAGES
from protocol.process.address import HostPort
from protocol.process.config import load
from relay_agent.config import AgentConfig, ServiceTable
from relay_server.config import Host, MetricsTable, ServerConfig
from relay_server.guard.rules import FOR_SSH, GuardTable
from relay_server.process.reload import NEEDS_RESTART
from tests.support.repository import ROOT

EXAMPLES = ROOT / "deploy" / "examples"
TABLES = (ServerConfig, MetricsTable, GuardTable, AgentConfig, ServiceTable)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_page_is_what_the_programs_say(page: Path) -> None:
    # Versions of argparse differ in where they break lines.
    assert page.read_text().split() == PAGES[page]().split(), "run: make docs"


@pytest.mark.parametrize("schema", TABLES)
def test_every_key_says_what_it_means(schema: type) -> None:
    hints = get_type_hints(schema)
    for field in fields(schema):
        hint = hints[field.name]
        if not any(is_dataclass(one) for one in (hint, *get_args(hint))):
            assert field.metadata["meaning"].endswith("."), field.name


def test_keys_that_need_a_restart_are_marked() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\| (restart|reload) \|", page, re.M)
    # That of [metrics] is a `listen` as well.
    assert [key for key, effect in rows if effect == "restart"] == ["listen", "bind", "listen"]
    assert set(NEEDS_RESTART) == {"listen", "bind", "metrics"}


def test_the_examples_change_nothing_as_they_are() -> None:
    assert load(ServerConfig, EXAMPLES / "server.toml", required=True) == ServerConfig()
    assert load(AgentConfig, EXAMPLES / "agent.toml", required=True) == AgentConfig()


def uncommented(example: str, folder: Path) -> Path:
    path = folder / example
    path.write_text(re.sub(r"^# (?=\w+ = |\[)", "", (EXAMPLES / example).read_text(), flags=re.M))
    return path


def test_the_relays_example_has_every_key_with_its_default(tmp_path: Path) -> None:
    config = load(ServerConfig, uncommented("server.toml", tmp_path), required=True)
    assert config == replace(
        ServerConfig(),
        # These have no default of their own.
        hosts=(Host("vps.example.net", None),),
        bind="203.0.113.5",
        visitors_per_agent=256,
        metrics=MetricsTable(listen=HostPort("127.0.0.1", 9111)),
        guard=config.guard,
    )
    assert config.rules("home", "shell") == FOR_SSH
    # So each was in the file.
    table = config.guard["home/shell"]
    assert None not in [getattr(table, one.name) for one in fields(table)]


def test_the_agents_example_has_every_key_with_its_default(tmp_path: Path) -> None:
    config = load(AgentConfig, uncommented("agent.toml", tmp_path), required=True)
    web = ServiceTable(target=HostPort("127.0.0.1", 80), port=11112, proxy_protocol="v2")
    assert config == replace(AgentConfig(), services={"web": web})


@pytest.mark.parametrize(
    ("example", "schema"), [("server.toml", ServerConfig), ("agent.toml", AgentConfig)]
)
def test_no_key_is_left_out(example: str, schema: type) -> None:
    text = (EXAMPLES / example).read_text()
    for field in fields(schema):
        assert re.search(rf"^(# )?(\[{field.name}\b|{field.name} = )", text, re.M), field.name
