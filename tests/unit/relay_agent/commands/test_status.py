"""How `relay-agent status` lays out what the agent told."""

from __future__ import annotations

from typing import Any

from protocol.process.cli.text import Paint
from relay_agent.commands.status import lay_out

LINK = {
    "address": "203.0.113.5:7022",
    "rtt": 0.0231,
    "age": 7500.0,
    "links": 1,
    "resumed": 0,
    "last_cut": None,
}
SSH = {
    "service": "ssh",
    "target": "127.0.0.1:22",
    "port": 11111,
    "state": "open",
    "reason": None,
}
STREAM = {
    "service": "ssh",
    "source": "198.51.100.7",
    "age": 59.0,
    "from_socket": 1,
    "to_socket": 2,
    "stream": 1,
}
STATUS: dict[str, Any] = {
    "version": "1",
    "age": 7501.0,
    "name": "home",
    "relay": ["vps.example.net:7022"],
    "attached": True,
    "failure": "",
    "link": LINK,
    "services": [SSH],
    "streams": [STREAM],
}


def shown(**changes: object) -> list[str]:
    return lay_out(STATUS | changes, Paint(on=False)).splitlines()


def test_at_work() -> None:
    assert shown() == [
        "agent 1, up 2h5m as home",
        "relay vps.example.net:7022",
        "attached for 2h5m, never resumed",
        "  203.0.113.5:7022, round trip 23 ms",
        "ssh at 127.0.0.1:22 on port 11111  open",
        "  198.51.100.7                               59s  sent    2 B  received    1 B",
    ]


def test_what_is_in_the_way() -> None:
    reason = "the relay did not grant this agent port 80; on the relay: relay-server invite home"
    refused = SSH | {
        "service": "web",
        "target": "127.0.0.1:80",
        "port": 80,
        "state": "refused",
        "reason": reason,
    }
    cut = {"age": 61.0, "reason": "no sign of life"}
    lines = shown(
        attached=False,
        failure="vps.example.net:7022: connection refused",
        link=LINK | {"last_cut": cut, "age": 61.0},
        services=[SSH | {"state": "asked"}, SSH | {"service": "old"}, refused],
        streams=[],
    )
    assert lines[2:] == [
        "away for 1m1s, never resumed",
        "  last at 203.0.113.5:7022",
        "  last cut 1m1s ago: no sign of life",
        "  cannot attach: vps.example.net:7022: connection refused",
        "ssh at 127.0.0.1:22 on port 11111  not answered yet",
        "old at 127.0.0.1:22 on port 11111  open when last heard",
        "web at 127.0.0.1:80 on port 80  refused",
        "    the relay did not grant this agent port 80; on the relay: relay-server",
        "    invite home",
    ]


def test_streams_of_a_service_that_went_are_told_of_all_the_same() -> None:
    assert shown(services=[])[-2:] == [
        "of services that are not published any more",
        "  198.51.100.7                               59s  sent    2 B  received    1 B",
    ]


def test_before_the_first_link() -> None:
    link = LINK | {"address": "", "links": 0, "age": None}
    lines = shown(name="", attached=False, link=link, services=[], streams=[])
    assert lines == ["agent 1, up 2h5m", "relay vps.example.net:7022", "no link yet"]
