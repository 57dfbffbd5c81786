"""`relay-server doctor` against real faults, and beside a relay that it must not disturb."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from tests.support.blocking_sockets import pair, receive
from tests.support.house import House
from tests.support.ports import LOOPBACK, free_port
from tests.support.programs import Relay

NewRelay = Callable[..., Relay]
Found = dict[str, dict[str, Any]]


def examined(relay: Relay) -> tuple[int, Found]:
    """The exit status, and what the doctor found, by step."""
    done = relay.cli("doctor", "--json", "--config", str(relay.config))
    assert done.stderr == ""
    return done.returncode, {entry["step"]: entry for entry in json.loads(done.stdout)}


def failures(found: Found) -> set[str]:
    """The steps that failed; each says what to do."""
    wrong = {name for name, entry in found.items() if entry["verdict"] == "failed"}
    assert all(found[name]["advice"] for name in wrong)
    return wrong


def test_all_is_well_and_nobody_is_disturbed(house: House) -> None:
    with pair(house.raw_port, house.target) as (visitor, accepted):
        status, found = examined(house.relay)
        assert (status, failures(found)) == (0, set())
        assert "a registry with 1 agent" in found["state"]["found"]
        assert f"{LOOPBACK}:{house.relay.port}" in found["listening"]["found"]
        assert found["ports"]["found"].startswith("3 of 3 granted ports are open")
        assert found["agents"]["found"] == "all that are enrolled (1) are attached"
        assert "descriptors are in use" in found["files"]["found"]
        visitor.sendall(b"still here")
        assert receive(accepted, 10) == b"still here"


def test_people_read_what_machines_do(house: House) -> None:
    done = house.relay.cli("doctor", "--config", str(house.relay.config))
    assert (done.returncode, done.stderr) == (0, "")
    _, found = examined(house.relay)
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if not line.startswith(" ")] == list(found)
    # But for paths, which are as long as they are.
    assert max(len(line) for line in lines if "/" not in line) <= 80


def test_a_relay_that_does_not_run(new_relay: NewRelay) -> None:
    relay = new_relay()
    relay.config.write_text(f'listen = ["{LOOPBACK}:{relay.port}"]\n')
    status, found = examined(relay)
    assert (status, failures(found)) == (1, {"state"})
    assert "no relay has its state here" in found["state"]["found"]
    relay.start()
    relay.process.terminate()
    status, found = examined(relay)
    assert (status, failures(found)) == (1, {"relay"})
    assert found["relay"]["found"] == "no relay runs with this state folder"
    assert found["agents"]["verdict"] == "skipped"


def test_a_port_that_another_program_holds(new_relay: NewRelay) -> None:
    relay = new_relay()
    relay.start()
    relay.invite("home", port := free_port())
    # Only invited: its port is nobody's yet, so nobody minds.
    with socket.create_server((LOOPBACK, port)):
        status, found = examined(relay)
        assert (status, failures(found)) == (0, set())
    relay.process.terminate()
    with socket.create_server((LOOPBACK, relay.port)):
        status, found = examined(relay)
    assert status == 1
    assert failures(found) == {"relay", "listening"}
    assert f":{relay.port}" in found["listening"]["found"]


def test_a_public_port_that_another_program_took(own_house: House) -> None:
    port = own_house.raw_port
    own_house.agent.stop()
    own_house.relay.process.terminate()
    with socket.create_server((LOOPBACK, port)):
        own_house.relay.start()
        status, found = examined(own_house.relay)
    assert (status, failures(found)) == (1, {"ports"})
    assert found["ports"]["found"] == f"another program holds port {port}"
    assert found["agents"]["found"] == "1 of 1 agents are away: home"


def test_a_configuration_that_is_wrong(new_relay: NewRelay) -> None:
    relay = new_relay()
    relay.start()
    relay.config.write_text("held_vistors = 3\n")
    status, found = examined(relay)
    assert status == 1
    assert failures(found) >= {"config"}
    assert "held_vistors: unknown key; did you mean held_visitors?" in found["config"]["found"]
