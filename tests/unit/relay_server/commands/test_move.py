from __future__ import annotations

import pytest

from protocol.process.address import HostPort
from protocol.process.state import StateFolder
from relay_server.registry.registry import Registry
from tests.support.relay_commands import Run, enrol


@pytest.mark.parametrize("arguments", [[], ["a.example", "--cancel"]])
def test_move_wants_a_host_or_none(run: Run, state: StateFolder, arguments: list[str]) -> None:
    status, _, err = run("move", *arguments)
    assert (status, err) == (2, "relay-server: expected HOST, or --cancel\n")


def test_a_move_has_as_many_hosts_as_an_invitation(run: Run, state: StateFolder) -> None:
    status, _, err = run("move", *(f"h{number}" for number in range(9)))
    assert (status, err) == (2, "relay-server: HOST: expected at most 8 hosts, not 9\n")


def test_a_move_while_the_relay_is_not_running_is_told_later(run: Run, state: StateFolder) -> None:
    state.ensure()
    enrol(state, "home", 1)
    with Registry(state) as registry:
        registry.remember_link_ports([443])
    assert run("move", "a.example", "[::1]:5") == (
        0,
        "",
        "to be told when they are here next: home\n",
    )
    with Registry(state) as registry:
        assert registry.announced() == (HostPort("a.example", 443), HostPort("::1", 5))
    assert run("move", "--cancel")[0] == 0
    with Registry(state) as registry:
        assert registry.announced() == ()
