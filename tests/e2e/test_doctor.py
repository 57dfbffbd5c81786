"""`relay-agent doctor` against real faults, and beside an agent that it must not disturb."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest

from protocol.process.state import StateFolder
from protocol.wire.noise import StaticKey
from tests.support.blocking_sockets import pair, receive
from tests.support.house import House
from tests.support.ports import LOOPBACK, free_port, wait_until_closed
from tests.support.programs import Agent, Relay, services
from tests.support.ssh import SshServer


def examined(agent: Agent, *, well: bool) -> dict[str, dict[str, Any]]:
    """What the doctor found, by step."""
    done = agent.cli("doctor", "--json")
    assert done.stderr == ""
    assert done.returncode == (0 if well else 1), done.stdout
    return {entry["step"]: entry for entry in json.loads(done.stdout)}


def failures(found: dict[str, dict[str, Any]]) -> list[str]:
    """The steps that failed; each says what to do."""
    wrong = [name for name, entry in found.items() if entry["verdict"] == "failed"]
    assert all(found[name]["advice"] for name in wrong)
    return wrong


def test_all_is_well_and_a_running_session_is_not_disturbed(house: House) -> None:
    before = len(house.relay.process.log)
    with pair(house.raw_port, house.target) as (visitor, accepted):
        found = examined(house.agent, well=True)
        assert failures(found) == []
        assert "SSH-2.0-" in found["target"]["found"]
        assert f"port {house.dropbear_port} shows SSH-2.0-" in found["visit"]["found"]
        assert f"port {house.raw_port} is open" in found["visit"]["found"]
        visitor.sendall(b"still here")
        assert receive(accepted, 10) == b"still here"
        with house.target.accept():  # the doctor's own visit
            pass
    new = house.relay.process.log[before:]
    assert not [line for line in new if "link-" in line or "agent-duplicate" in line], new


def test_for_a_person_it_has_80_columns_and_no_colours_in_a_pipe(house: House) -> None:
    done = house.agent.cli("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok    key        the relay knows this agent as home\n" in done.stdout
    assert "\x1b" not in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines()), done.stdout
    house.target.accept().close()


def test_not_joined(new_agent: Callable[..., Agent]) -> None:
    found = examined(new_agent(), well=False)
    assert failures(found) == ["enrolment"]
    assert "relay-agent join" in found["enrolment"]["found"]
    assert found["visit"]["verdict"] == "skipped"


def test_a_relay_that_does_not_run(own_house: House) -> None:
    own_house.relay.stop()
    own_house.agent.process.wait_for_line("dial-failed.*Connection refused")
    found = examined(own_house.agent, well=False)
    assert failures(found) == ["connect", "link"]
    assert "relay-server doctor" in found["connect"]["advice"]
    assert "Connection refused" in found["link"]["found"]


def test_an_agent_that_does_not_run(own_house: House) -> None:
    own_house.agent.stop()
    found = examined(own_house.agent, well=False)
    assert failures(found) == ["agent"]
    assert found["key"]["verdict"] == "ok"
    # One that could not make its control socket, but holds the folder.
    with StateFolder(own_house.agent.state).lock("agent.lock"):
        found = examined(own_house.agent, well=False)
    assert failures(found) == ["agent"]
    assert "one may run" in found["agent"]["found"]


def test_an_agent_that_is_stopped_and_answers_nothing(own_house: House) -> None:
    own_house.agent.process.send(signal.SIGSTOP)
    try:
        assert failures(examined(own_house.agent, well=False)) == ["agent"]
    finally:
        own_house.agent.process.send(signal.SIGCONT)


def test_a_revoked_key(own_house: House) -> None:
    assert own_house.relay.cli("revoke", "home").returncode == 0
    wait_until_closed(own_house.raw_port)
    found = examined(own_house.agent, well=False)
    assert failures(found) == ["key", "link"]
    assert "revoked" in found["key"]["found"]
    assert "relay-server invite" in found["key"]["advice"]


def test_a_relay_with_another_key(own_house: House, new_relay: Callable[..., Relay]) -> None:
    own_house.relay.stop()
    other = new_relay()
    other.port = own_house.relay.port
    other.start()
    found = examined(own_house.agent, well=False)
    assert failures(found) == ["handshake", "link"]
    assert "join again" in found["handshake"]["advice"]


def test_a_relay_whose_key_was_rotated(own_house: House) -> None:
    relay, agent = own_house.relay, own_house.agent
    agent.stop()
    enrolment = agent.state / "enrolment.toml"
    before = enrolment.read_text()
    assert relay.cli("rotate-key").returncode == 0
    # It has not followed, and asking does not make it.
    found = examined(agent, well=False)
    assert failures(found) == ["agent"]
    assert found["key"]["verdict"] == "ok"
    assert relay.agents()["home"]["follows"] is False
    # One that was told of the new key and stopped there has both; the old one is worth nothing now.
    new = StaticKey.from_private(bytes.fromhex((relay.state / "relay.key").read_text()))
    assert relay.cli("rotate-key", "--retire").returncode == 0
    assert failures(examined(agent, well=False)) == ["agent", "handshake"]
    enrolment.write_text(
        before.replace("relay_key", f'relay_successor = "{new.public.hex()}"\nrelay_key')
    )
    assert failures(examined(agent, well=False)) == ["agent"]


def test_a_port_that_is_not_granted(own_house: House, dropbear: SshServer) -> None:
    own_house.agent.stop()
    own_house.agent.configure(services(("ssh", dropbear.port, 9)))
    own_house.agent.start()
    own_house.agent.process.wait_for_line("service-refused")
    found = examined(own_house.agent, well=False)
    assert failures(found) == ["ports", "link"]
    assert "ssh wants port 9" in found["ports"]["found"]


def test_a_target_that_is_down(own_house: House) -> None:
    own_house.agent.stop()
    own_house.agent.configure(services(("ssh", free_port(), own_house.dropbear_port)))
    own_house.agent.start()
    own_house.agent.process.wait_for_line("service-up")
    found = examined(own_house.agent, well=False)
    assert failures(found) == ["target"]
    assert found["visit"]["found"] == "not tried, as no target answers"
    assert "Connection refused" in found["target"]["found"]


def test_an_agent_that_has_not_read_its_files_again(own_house: House) -> None:
    own_house.agent.configure(services(("ssh", own_house.target.port, own_house.dropbear_port)))
    found = examined(own_house.agent, well=True)
    assert found["link"]["verdict"] == "note"
    assert "relay-agent reload" in found["link"]["advice"]
    assert f"port {own_house.raw_port} is open" in found["visit"]["found"]


def test_a_visitor_whom_the_relay_turns_away(own_house: House) -> None:
    assert own_house.relay.cli("restrict", "home", "--deny", "127.0.0.0/8").returncode == 0
    found = examined(own_house.agent, well=False)
    assert failures(found) == ["visit"]
    assert "relay-server status" in found["visit"]["advice"]


def test_a_port_that_another_program_holds(
    own_house: House, dropbear: SshServer, new_agent: Callable[..., Agent]
) -> None:
    port = free_port()
    with socket.create_server((LOOPBACK, port)):
        agent = new_agent()
        own_house.relay.invite("cabin")
        agent.join(own_house.relay.invite("cabin"), f"ssh={LOOPBACK}:{dropbear.port}")
        assert own_house.relay.invite("cabin", port)
        agent.configure(services(("ssh", dropbear.port, port)))
        agent.start()
        agent.process.wait_for_line("service-refused")
        found = examined(agent, well=False)
        assert failures(found) == ["link"]
        assert "another program holds" in found["link"]["found"]


@pytest.mark.parametrize(
    ("file", "step"), [("agent.toml", "enrolment"), ("enrolment.toml", "enrolment")]
)
def test_a_broken_file(own_house: House, file: str, step: str) -> None:
    (own_house.agent.state / file).write_text("= nonsense")
    found = examined(own_house.agent, well=False)
    assert failures(found) == [step]
    assert file in found[step]["found"]
