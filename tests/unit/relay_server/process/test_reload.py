from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from protocol.process.address import HostPort
from protocol.process.config import ConfigError
from protocol.process.state import StateError, StateFolder
from protocol.wire.noise import StaticKey
from relay_server.agents.context import RelayContext
from relay_server.config import Host, ServerConfig
from relay_server.guard.rules import GuardTable
from relay_server.net.fd_store import StoredListeners
from relay_server.net.networks import parse_networks
from relay_server.process.reload import Outcome, Reload
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import RelayKeys
from tests.support.log_records import told

DENIED = parse_networks(["203.0.113.0/24"])


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    state = StateFolder(tmp_path / "state")
    state.ensure()
    with Registry(state) as registry:
        yield registry


class Recording(RelayContext):
    """Keeps each configuration that was put into effect."""

    applied: list[ServerConfig]

    def reconfigure(self, config: ServerConfig) -> None:
        super().reconfigure(config)
        self.applied.append(config)


class File:
    """A configuration as it is on the disk, and what became of it."""

    def __init__(self, registry: Registry, nursery: trio.Nursery) -> None:
        self.config: ServerConfig | Exception = ServerConfig()
        keys = RelayKeys(StaticKey.generate())
        context = Recording(ServerConfig(), registry, keys, nursery, StoredListeners())
        self.applied = context.applied = []
        self.reload = Reload(context, self.read)

    def read(self) -> ServerConfig:
        if isinstance(self.config, Exception):
            raise self.config
        return self.config


@pytest.fixture
async def file(registry: Registry, nursery: trio.Nursery) -> File:
    return File(registry, nursery)


async def test_what_has_changed_is_named_and_in_effect(
    file: File, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="relay_server")
    wanted = ServerConfig(deny=DENIED, guard={"web": GuardTable(hold=1.0)}, half_open=9)
    file.config = wanted
    assert await file.reload() == Outcome(["half_open", "deny", "guard"], [])
    assert file.applied == [wanted]
    assert await file.reload() == Outcome([], [])
    assert told(caplog, "reloaded") == [
        {"changed": ["half_open", "deny", "guard"], "needs_restart": []},
        {"changed": [], "needs_restart": []},
    ]


@pytest.mark.parametrize("wrong", [ConfigError("server.toml: no"), StateError("server.toml: no")])
async def test_what_is_wrong_changes_nothing(
    file: File, wrong: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="relay_server")
    file.config = wrong
    with pytest.raises(type(wrong), match=r"server\.toml: no"):
        await file.reload()
    assert not file.applied
    assert told(caplog, "reload-refused") == [{"reason": "server.toml: no"}]


async def test_what_cannot_be_remembered_is_not_in_effect(file: File, registry: Registry) -> None:
    registry._path.unlink()
    registry._path.mkdir()
    file.config = ServerConfig(deny=DENIED)
    with pytest.raises(StateError):
        await file.reload()
    assert not file.applied


async def test_addresses_of_open_sockets_wait_for_a_restart(file: File) -> None:
    listen = (HostPort("::1", 1),)
    file.config = ServerConfig(listen=listen, bind="::1", deny=DENIED)
    for changed in (["deny"], []):
        # Said each time, as long as it is so.
        assert await file.reload() == Outcome(changed, ["listen", "bind"])
    assert file.applied[-1] == ServerConfig(deny=DENIED)


async def test_invitations_hear_of_hosts_and_ports(file: File, registry: Registry) -> None:
    file.config = ServerConfig(hosts=(Host("a.example", None),), ports=range(5, 9))
    assert (await file.reload()).changed == ["hosts", "ports"]
    assert registry.hosts() == (HostPort("a.example", 7022),)
    assert registry.port_range() == range(5, 9)


async def test_two_at_once_are_one_after_the_other(file: File, registry: Registry) -> None:
    configs = iter([ServerConfig(ports=range(1, 2)), ServerConfig(ports=range(2, 3))])
    file.reload._read = lambda: next(configs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.reload)
        nursery.start_soon(file.reload)
    assert [config.ports for config in file.applied] == [range(1, 2), range(2, 3)]
    assert registry.port_range() == range(2, 3)


async def test_the_log_level_is_changed_at_once(file: File) -> None:
    root = logging.getLogger()
    before, handlers = root.level, root.handlers[:]
    try:
        file.config = replace(ServerConfig(), log_level="error", log_format="json")
        assert (await file.reload()).changed == ["log_level", "log_format"]
        assert root.level == logging.ERROR
    finally:
        root.setLevel(before)
        root.handlers[:] = handlers
