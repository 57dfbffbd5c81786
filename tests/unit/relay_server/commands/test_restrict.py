from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from protocol.process.control.client import SOCKET
from protocol.process.state import StateFolder
from relay_server.registry.registry import Registry
from tests.support.relay_commands import Run, enrol, server


def test_an_invitation_may_say_who_may_visit(run: Run, state: StateFolder) -> None:
    lists = ("--allow", "203.0.113.0/24", "--allow", "2001:db8::1", "--deny", "203.0.113.9")
    status, _, err = run("invite", "home", "--host", "vps", "--port", "9000", *lists)
    assert status == 0
    said = "203.0.113.0/24, 2001:db8::1/128, but not 203.0.113.9/32"
    assert f"Visitors to port 9000 may come from: {said}.\n" in err
    with Registry(state) as registry:
        agent = registry.agent("home")
    assert agent is not None
    assert str(agent.admission(9000)) == said
    # Another invitation keeps it, and says it again.
    assert said in run("invite", "home", "--port", "9001")[2]
    with server(state, {}) as asked:
        status, _, err = run("invite", "home", "--deny", "203.0.113.9")
    assert asked == ["refresh"]
    assert "Visitors to port 9001 may come from: everybody, but not 203.0.113.9/32.\n" in err


def test_who_may_visit_can_be_changed_at_once(run: Run, state: StateFolder) -> None:
    state.ensure()
    enrol(state, "home", 1, 9000, 9001)
    with server(state, {}) as asked:
        done = run("restrict", "home", "--port", "9001", "--allow", "203.0.113.0/24")
    said = "visitors to port 9001 of home may come from: 203.0.113.0/24\n"
    assert (done, asked) == ((0, "", said), ["refresh"])
    (state.path / SOCKET).unlink()
    run("restrict", "home", "--port", "9000", "--deny", "::/0", "--deny", "192.0.2.1")
    out = run("agents")[1]
    assert out.splitlines()[2:] == [
        "",
        "NAME  PORT  VISITORS  NETWORK",
        "home  9000  deny      ::/0",
        "home  9000  deny      192.0.2.1/32",
        "home  9001  allow     203.0.113.0/24",
    ]
    (entry,) = json.loads(run("agents", "--json")[1])
    assert entry["restricted"] == [
        {"port": 9000, "allow": [], "deny": ["::/0", "192.0.2.1/32"]},
        {"port": 9001, "allow": ["203.0.113.0/24"], "deny": []},
    ]
    said = "visitors to ports 9000, 9001 of home may come from: everybody\n"
    assert run("restrict", "home", "--lift") == (0, "", said)
    assert len(run("agents")[1].splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("home",), 2, "expected --allow or --deny, or --lift to admit everybody again"),
        (("home", "--lift", "--deny", "::1"), 2, "expected --allow or --deny, or --lift to admit"),
        (("office", "--lift"), 1, "there is no agent office"),
        (("home", "--port", "9", "--lift"), 1, "port 9 is not granted to home"),
    ],
)
def test_what_cannot_be_restricted_is_refused(
    run: Run, state: StateFolder, arguments: tuple[str, ...], status: int, said: str
) -> None:
    state.ensure()
    enrol(state, "home", 1, 9000)
    ended, out, err = run("restrict", *arguments)
    assert (ended, out) == (status, "")
    assert err.startswith(f"relay-server: {said}")
    assert err.count("\n") == 1


def test_a_network_that_is_none_is_refused(usage: Callable[..., str]) -> None:
    for command in ("invite", "restrict"):
        said = usage(command, "home", "--allow", "203.0.113.9/24")
        assert said.endswith(
            "--allow: expected 203.0.113.0/24, if that is what '203.0.113.9/24' stands for"
        )
        said = usage(command, "home", "--deny", "a.example")
        assert "argument --deny: expected an address or a network such as 203.0.113.0/24" in said


def test_restricting_beside_a_server_that_fails(run: Run, state: StateFolder) -> None:
    state.ensure()
    enrol(state, "home", 1)
    with server(state, {"error": "busy"}):
        status, _, err = run("restrict", "home", "--deny", "::1")
    said = "it is written down, but may not be in effect yet: the running process refuses: busy"
    assert (status, err) == (1, f"relay-server: {said}\n")
