from __future__ import annotations

from protocol.process.state import StateFolder
from relay_server.registry.registry import Registry
from tests.support.relay_commands import Run, enrol, server


def test_revoking_tells_the_server(run: Run, state: StateFolder) -> None:
    state.ensure()
    enrol(state, "home", 1)
    with server(state, {}) as asked:
        assert run("revoke", "home") == (0, "", "home is revoked and cut off\n")
    assert asked == ["refresh"]
    with Registry(state) as registry:
        assert registry.revoked_name(b"\1" * 32) == "home"


def test_revoking_without_a_server(run: Run, state: StateFolder) -> None:
    state.ensure()
    enrol(state, "home", 1)
    assert run("revoke", "home") == (0, "", "home is revoked\n")
    assert run("revoke", "home") == (1, "", "relay-server: there is no agent home\n")


def test_revoking_beside_a_server_that_fails(run: Run, state: StateFolder) -> None:
    state.ensure()
    enrol(state, "home", 1)
    with server(state, {"error": "busy"}):
        status, _, err = run("revoke", "home")
    assert status == 1
    assert err == (
        "relay-server: home is revoked, but may still be here: the running process refuses: busy\n"
    )
