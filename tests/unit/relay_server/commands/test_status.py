"""How `relay-server status` lays out what the relay told."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from protocol.process.cli.text import Paint
from protocol.process.state import StateFolder
from relay_server.agents import status as relay_status
from relay_server.commands import status as module
from relay_server.commands.status import lay_out

STREAM = {
    "service": "ssh",
    "port": 11111,
    "source": "198.51.100.7",
    "age": 720.0,
    "from_socket": 1,
    "stream": 1,
}
LINK = {
    "address": "203.0.113.5:41022",
    "rtt": 0.0231,
    "age": 7500.0,
    "links": 5,
    "resumed": 4,
    "last_cut": {"age": 7501.0, "reason": "no sign of life"},
}
SSH = {"service": "ssh", "port": 11111, "state": "open", "published": True, "refused": {}}
HOME: dict[str, Any] = {
    "name": "home",
    "attached": True,
    "link": LINK,
    "services": [SSH],
    "streams": [STREAM | {"to_socket": 44_000_000}],
    "waiting": 0,
}


def told(*agents: dict[str, Any], absent: list[str] | None = None) -> dict[str, Any]:
    return {
        "version": "1",
        "age": 90.0,
        "listening": ["[::]:7022"],
        "agents": list(agents),
        "absent": absent or [],
    }


def shown(*agents: dict[str, Any], absent: list[str] | None = None) -> list[str]:
    return lay_out(told(*agents, absent=absent), Paint(on=False)).splitlines()


def test_an_agent_at_work() -> None:
    assert shown(HOME) == [
        "relay 1, up 1m30s, on [::]:7022",
        "1 agent attached, 0 away, 1 visitor",
        "",
        "home  attached for 2h5m, resumed 4 times",
        "  203.0.113.5:41022, round trip 23 ms",
        "  last cut 2h5m ago: no sign of life",
        "  ssh on port 11111",
        "    198.51.100.7                               12m  sent    1 B  received  44 MB",
    ]


def test_an_agent_that_is_away_and_what_the_guard_did() -> None:
    services = [
        SSH | {"published": False},
        SSH
        | {
            "service": "web",
            "port": 8080,
            "state": "busy",
            "refused": {"source_denied": 3, "too_many_from_source": 12},
        },
        SSH | {"service": "old", "port": 8081, "state": "closed"},
        SSH | {"port": 8082, "state": "closed"},  # it has moved, and a visitor is left
    ]
    left = STREAM | {"port": 8082, "to_socket": 5}
    away = HOME | {"attached": False, "services": services, "streams": [left], "waiting": 2}
    assert shown(away)[3:] == [
        "home  away for 2h5m, resumed 4 times",
        "  last at 203.0.113.5:41022",
        "  last cut 2h5m ago: no sign of life",
        "  ssh on port 11111  open, but not published now",
        "  web on port 8080  another program holds it",
        "    refused 12: too many visitors from there",
        "    refused 3: the source is denied",
        "  ssh on port 8082  closed",
        "    198.51.100.7                               12m  sent    1 B  received    5 B",
        "  2 visitors waiting for the agent",
    ]


def test_many_streams_are_summed_up() -> None:
    lines = shown(HOME | {"streams": [STREAM | {"to_socket": 1}] * 25})
    assert lines[-1] == "    and 5 more"


def test_no_agent() -> None:
    assert shown()[1:] == [
        "0 agents attached, 0 away, 0 visitors",
        "no agent is enrolled; invite one: relay-server invite NAME",
    ]


def test_those_who_never_came_are_named() -> None:
    lines = shown(absent=["home", "office"])
    assert lines[1] == "0 agents attached, 2 away, 0 visitors"
    assert lines[-1] == "not here since the relay started: home, office"


def test_one_that_comes_just_now_has_no_link_yet() -> None:
    link = LINK | {"links": 0, "last_cut": None, "resumed": 0, "age": None, "rtt": None}
    lines = shown(HOME | {"attached": False, "link": link, "services": [], "streams": []})
    assert lines[3:] == ["home  no link yet"]


def test_the_longest_of_everything_has_room_on_80_columns() -> None:
    address = "2001:db8:1234:5678:9abc:def0:1234:5678"
    stream = STREAM | {
        "service": "s" * 64,
        "port": 65535,
        "source": address,
        "age": 86400 * 99 + 3600 * 23,
        "from_socket": 999_499_999_999,
        "to_socket": 999_499_999_999,
    }
    cut = {"age": 86400 * 99 + 3600 * 23, "reason": "w " * 128}
    link = LINK | {
        "address": f"[{address}]:65535",
        "age": 86400 * 99 + 3600 * 23,
        "rtt": 29.999,
        "last_cut": cut,
        "resumed": 99999,
    }
    service = SSH | {
        "service": "s" * 64,
        "port": 65535,
        "published": False,
        "refused": {"the source is not among those allowed": 10**9},
    }
    agent = HOME | {
        "name": "n" * 32,
        "link": link,
        "services": [service, service | {"state": "busy"}],
        "streams": [stream],
        "waiting": 128,
    }
    everybody = [agent, agent | {"attached": False}]
    assert max(map(len, shown(*everybody, absent=["n" * 32] * 9))) == 80


@pytest.mark.parametrize("json", [True, False])
def test_watching_goes_on_while_the_relay_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, json: bool
) -> None:
    answers = [told(HOME), None, told(HOME)]
    monkeypatch.setattr(relay_status, "ask", lambda path, command: answers.pop(0))
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if not answers:
            raise KeyboardInterrupt

    class Empty:
        def __enter__(self) -> Empty:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def agents(self) -> list[Any]:
            return []

    monkeypatch.setattr(module.time, "sleep", nap)
    monkeypatch.setattr(module, "existing_registry", lambda state: Empty())
    options = argparse.Namespace(json=json, watch=True, name=None)
    module.run(options, StateFolder(tmp_path))
    output = capsys.readouterr().out
    assert len(naps) == 3
    assert output.count("198.51.100.7") == 2
    assert output.count("the relay is not running") == 1
    assert "\x1b" not in output  # no terminal
    if json:
        assert len(output.split("\n")) == 5


def test_on_a_terminal_a_picture_takes_the_place_of_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LINES", "4")
    monkeypatch.setenv("COLUMNS", "80")
    assert module._redrawn("a\nb\nc\n") == "\x1b[Ha\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[J"
    assert module._redrawn("a\nb\nc\nd\n").splitlines()[2] == "and 2 lines more\x1b[K"
