from __future__ import annotations

import json

from protocol.process.control.client import SOCKET
from protocol.process.state import StateFolder
from tests.support.relay_commands import NOW, Run, enrol, server

HERE = {
    "name": "home",
    "attached": True,
    "address": "203.0.113.9:4711",
    "since": 3723.4,
    "streams": 2,
    "ports": [11111],
    "refused": {"evicted": 36, "not_ssh": 1200},
    "services": [
        {
            "service": "ssh",
            "port": 11111,
            "refused": {"evicted": 36, "not_ssh": 1100},
        },
        {"service": "shell", "port": 11112, "refused": {"not_ssh": 100}},
        {"service": "web", "port": 11113, "refused": {}},
    ],
}


def test_agents_without_a_server(run: Run, state: StateFolder) -> None:
    state.ensure()
    enrol(state, "home", 1)
    status, out, err = run("agents")
    assert (status, err) == (0, "the relay is not running\n")
    assert out == (
        "NAME  PORTS  STATUS   SINCE  STREAMS  ADDRESS\nhome  11111  unknown         0\n"
    )
    _, out, err = run("agents", "--json")
    assert err == ""
    assert json.loads(out) == [
        {
            "name": "home",
            "ports": [11111],
            "restricted": [],
            "enrolled": int(NOW),
            "status": "unknown",
            "since": None,
            "address": None,
            "streams": 0,
            "open_ports": [],
            "refused": {},
            "services": [],
            "follows": True,
        }
    ]


def test_agents_with_a_server(run: Run, state: StateFolder) -> None:
    state.ensure()
    for number, name in enumerate(("home", "office", "cabin"), 1):
        enrol(state, name, number)
    away = {"attached": False, "address": "", "since": 5, "services": []}
    here = [HERE, HERE | {"name": "office"} | away]
    with server(state, {"agents": here}) as asked:
        status, out, err = run("agents")
    assert (status, err, asked) == (0, "", ["agents"])
    assert out.splitlines() == [
        "NAME    PORTS  STATUS    SINCE  STREAMS  ADDRESS",
        "cabin   11113  absent           0",
        "home    11111  attached  1h2m   2        203.0.113.9:4711",
        "office  11112  detached  5s     2",
        "",
        "NAME  SERVICE  REFUSED  REASON",
        "home  ssh      1100     not an SSH client",
        "home  ssh      36       evicted for another visitor",
        "home  shell    100      not an SSH client",
    ]
    (state.path / SOCKET).unlink()
    with server(state, {"agents": here}):
        entries = {entry["name"]: entry for entry in json.loads(run("agents", "--json")[1])}
    assert entries["home"] == {
        "name": "home",
        "ports": [11111],
        "restricted": [],
        "enrolled": int(NOW),
        "status": "attached",
        "since": int(NOW - 3723.4),
        "address": "203.0.113.9:4711",
        "streams": 2,
        "open_ports": [11111],
        "refused": HERE["refused"],
        "services": HERE["services"],
        "follows": True,
    }


def test_a_table_stays_within_80_columns(run: Run, state: StateFolder) -> None:
    state.ensure()
    name = "n" * 32
    enrol(state, name, 1, *range(60001, 60101))
    address = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"
    refused = {"service": "s" * 64, "port": 1, "refused": {"too_many_from_source": 10**6}}
    here = HERE | {"name": name, "address": address, "since": 9e6, "services": [refused]}
    with server(state, {"agents": [here]}):
        _, out, _ = run("agents")
    assert all(len(line) <= 80 for line in out.splitlines())
    assert f"\n    {address}\n" in out
    assert out.splitlines()[-1] == "    too many visitors from there"
    assert "60001 +99" in out


def test_no_agent_yet(run: Run, state: StateFolder) -> None:
    run("invite", "home", "--host", "vps")
    status, out, err = run("agents")
    assert (status, out) == (0, "")
    assert err.endswith("no agent is enrolled; invite one: relay-server invite NAME\n")
    assert run("agents", "--json")[1] == "[]\n"
