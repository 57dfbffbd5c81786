from __future__ import annotations

import pytest

from protocol.process.state import StateFolder
from tests.support.relay_commands import Run, server


@pytest.mark.parametrize(
    ("changed", "restart", "out", "err"),
    [
        ([], [], "nothing has changed\n", ""),
        (["deny", "guard"], [], "changed: deny, guard\n", ""),
        ([], ["listen", "bind"], "", "not before a restart: listen, bind\n"),
    ],
)
def test_reload_tells_what_has_changed(
    run: Run, state: StateFolder, changed: list[str], restart: list[str], out: str, err: str
) -> None:
    state.ensure()
    with server(state, {"changed": changed, "restart": restart}) as asked:
        assert run("reload") == (0, out, err)
    assert asked == ["reload"]


def test_reload_tells_what_is_wrong(run: Run, state: StateFolder) -> None:
    state.ensure()
    status, _, err = run("reload")
    assert (status, err.count("\n")) == (1, 1)
    assert "the relay is not running" in err
    with server(state, {"error": "server.toml: deny: expected"}):
        status, out, err = run("reload")
    assert (status, out) == (1, "")
    assert err.endswith("refuses: server.toml: deny: expected\n")
