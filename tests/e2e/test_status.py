"""`status` of both sides: what a person sees, and what a script reads."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from typing import Any

from tests.support.blocking_sockets import pair, receive
from tests.support.house import House
from tests.support.programs import Agent, Relay, assert_fails
from tests.support.waiting import eventually


def of(side: Relay | Agent, *arguments: str) -> dict[str, Any]:
    done = side.cli("status", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    status: dict[str, Any] = json.loads(done.stdout)
    return status


def test_both_sides_tell_of_link_ports_and_visitors(house: House) -> None:
    with pair(house.raw_port, house.target) as (visitor, accepted):
        visitor.sendall(b"12345")
        assert receive(accepted, 5) == b"12345"
        visitor_host = visitor.getsockname()[0]

        (agent,) = of(house.relay, "home")["agents"]
        assert (agent["name"], agent["attached"]) == ("home", True)
        assert agent["link"]["rtt"] > 0
        assert {one["service"]: one["port"] for one in agent["services"]} == {
            "ssh": house.dropbear_port,
            "openssh": house.openssh_port,
            "raw": house.raw_port,
        }
        (stream,) = agent["streams"]
        assert (stream["service"], stream["source"]) == ("raw", visitor_host)
        assert (stream["from_socket"], stream["to_socket"]) == (11, 6)

        mine = of(house.agent)
        assert mine["name"] == "home"
        assert {one["state"] for one in mine["services"]} == {"open"}
        (stream,) = mine["streams"]
        assert (stream["service"], stream["source"]) == ("raw", visitor_host)
        assert (stream["from_socket"], stream["to_socket"]) == (6, 11)

        # The same for a person, within 80 columns and without colours, since this is no terminal.
        for side in (house.relay, house.agent):
            done = side.cli("status")
            assert (done.returncode, done.stderr) == (0, "")
            assert "attached for" in done.stdout
            assert f"on port {house.raw_port}" in done.stdout
            assert visitor_host in done.stdout
            assert "sent   11 B" in done.stdout
            assert "\x1b" not in done.stdout
            assert all(len(line) <= 80 for line in done.stdout.splitlines()), done.stdout

    assert stat.S_IMODE((house.agent.state / "control.sock").stat().st_mode) == 0o600


def test_a_cut_link_is_told_of_with_its_reason(own_house: House) -> None:
    relay, agent = own_house.relay, own_house.agent
    relay.stop()
    assert_fails(relay.cli("status"), "the relay is not running", status=1)
    status = eventually(
        lambda: (status := of(agent))["failure"] and status, what="the agent says why"
    )
    assert not status["attached"]
    assert status["link"]["last_cut"]["reason"]
    assert "cannot attach: " in agent.cli("status").stdout
    relay.start()
    again = eventually(
        lambda: (status := of(agent))["attached"] and status, what="the agent is back"
    )
    assert again["link"]["links"] == 2
    assert again["failure"] == ""

    # One that has not come since the relay started is told of too.
    agent.stop()
    relay.stop()
    relay.start()
    never = "not here since the relay started: home"
    eventually(lambda: never in relay.cli("status").stdout, what="it is told of")
    assert of(relay, "home")["absent"] == ["home"]


def test_without_a_process_to_ask_it_is_one_line(
    new_relay: Callable[..., Relay], new_agent: Callable[..., Agent]
) -> None:
    assert_fails(new_relay().cli("status"), "no relay has its state here", status=2)
    assert_fails(new_agent().cli("status"), "not running", status=1)


def test_a_name_that_nobody_has(house: House) -> None:
    assert_fails(house.relay.cli("status", "nobody"), "nobody is not enrolled", status=1)
