"""Whatever arrives, the relay says nothing to strangers and harms nobody else."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.wire.hello import VERSION, encode_preface
from protocol.wire.invitation import Invitation
from protocol.wire.noise import Handshake, StaticKey, Suite
from tests.support.blocking_sockets import Target, pair, receive, receive_to_end, visit
from tests.support.house import House
from tests.support.ports import LOOPBACK, free_port, wait_until_listening
from tests.support.programs import Agent, Relay, assert_fails, services
from tests.support.recorder import PREFACE, Recorder
from tests.support.ssh import SshServer, read_banner
from tests.support.waiting import LIMIT, eventually

NewRelay = Callable[..., Relay]
NewAgent = Callable[..., Agent]


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(189),
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "noise": secrets.token_bytes(4096),
    "one byte": b"S",
    "unknown suite": PREFACE[:-1] + b"\xff",
    "a first message that does not verify": PREFACE + b"\x00\x30" + secrets.token_bytes(48),
    "a length of nothing": PREFACE + b"\x00\x00",
    "an oversized length": PREFACE + b"\xff\xff" + bytes(5000),
}


def answer_to(relay: Relay, data: bytes) -> bytes:
    """All that the relay says to `data` until it closes, a reset being an end like any other."""
    with visit(relay.port) as stranger:
        with contextlib.suppress(OSError):
            stranger.sendall(data)
            stranger.shutdown(socket.SHUT_WR)
        try:
            return receive_to_end(stranger)
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_gets_not_a_byte_back(house: House, data: bytes) -> None:
    with pair(house.raw_port, house.target) as (visitor, accepted):
        assert answer_to(house.relay, data) == b""
        visitor.sendall(b"undisturbed")
        assert receive(accepted, 11) == b"undisturbed"


def test_half_a_handshake_is_closed_in_time(own_house: House) -> None:
    # A house of its own, as the relay does not log every failure of many.
    halves = [b"", PREFACE[:3], PREFACE, PREFACE + b"\x00\x30" + bytes(20)]
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(visit(own_house.relay.port)) for _ in halves]
        for stranger, half in zip(strangers, halves, strict=True):
            stranger.sendall(half)
        for stranger in strangers:
            with contextlib.suppress(ConnectionResetError):
                assert receive_to_end(stranger) == b""
    own_house.relay.process.wait_for_line("handshake-failed.*time")


def test_silent_strangers_keep_no_agent_out(own_house: House) -> None:
    """As many as one address may have open, and more."""
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(visit(own_house.relay.port))
        own_house.agent.process.kill()
        own_house.agent.start()
        eventually(
            lambda: read_banner(own_house.dropbear_port).startswith(b"SSH-2.0-"),
            what="the agent is back beside a hundred strangers",
        )


def test_a_wrong_relay_key(
    house: House, new_relay: NewRelay, new_agent: NewAgent, dropbear: SshServer
) -> None:
    """The invitation of one relay leads to another one: that one stays silent."""
    other = new_relay()
    invitation = other.invite("home", free_port(), hosts=[f"{LOOPBACK}:{house.relay.port}"])
    done = new_agent().try_join(invitation, f"ssh={LOOPBACK}:{dropbear.port}")
    assert_fails(done, "relay", status=1)


def test_another_protocol_version_is_told_apart_from_a_wrong_key(house: House) -> None:
    relay_key = Invitation.decode(house.invitation).relay_key
    preface = encode_preface(Suite.AESGCM, version=VERSION + 1)
    handshake = Handshake(
        suite=Suite.AESGCM,
        prologue=preface,
        initiator=True,
        static=StaticKey.generate(),
        remote_static=relay_key,
    )
    message = handshake.write_message()
    with visit(house.relay.port) as agent:
        agent.sendall(preface + len(message).to_bytes(2, "big") + message)
        answer = receive_to_end(agent)
    assert int.from_bytes(answer[:2], "big") == len(answer) - 2
    denial = handshake.read_message(answer[2:])
    assert b"version" in denial


@pytest.fixture
def recorder(own_house: House) -> Iterator[Recorder]:
    recorder = Recorder(own_house.relay.port)
    yield recorder
    recorder.close()


def test_a_replayed_handshake_does_nothing(
    own_house: House, recorder: Recorder, new_agent: NewAgent, dropbear: SshServer
) -> None:
    port, agent = free_port(), new_agent()
    invitation = own_house.relay.invite("cabin", port, hosts=[f"{LOOPBACK}:{recorder.port}"])
    agent.join(invitation, f"ssh={LOOPBACK}:{dropbear.port}")
    recorder.said.clear()
    agent.start()
    eventually(lambda: read_banner(port), what="the agent serves")
    assert bytes(recorder.said).startswith(PREFACE[:4])
    ups = sum("link-up" in line for line in own_house.relay.process.log)
    before = len(own_house.relay.process.log)
    # The first message verifies, so the relay answers it as it would answer the agent; the third
    # one belongs to another handshake.
    answer_to(own_house.relay, bytes(recorder.said))
    own_house.relay.process.wait_for_line("handshake-failed", after=before)
    assert sum("link-up" in line for line in own_house.relay.process.log) == ups
    assert read_banner(port).startswith(b"SSH-2.0-")
    agent.stop()
    assert own_house.relay.cli("revoke", "cabin").returncode == 0


def test_an_unknown_agent(own_house: House) -> None:
    """The relay lost its registry but not its key: it says so, and the agent goes on trying."""
    relay, agent = own_house.relay, own_house.agent
    relay.process.terminate()
    for file in relay.state.glob("registry*"):
        file.unlink()
    relay.start()
    agent.process.wait_for_line("link-denied")
    relay.process.wait_for_line("agent-denied")
    assert agent.process.running


def test_a_port_that_another_program_holds(own_house: House) -> None:
    """Said in both logs; the port is taken when it becomes free; the others are served."""
    relay, agent = own_house.relay, own_house.agent
    agent.process.terminate()
    relay.process.terminate()
    with socket.create_server((LOOPBACK, own_house.dropbear_port)):
        relay.start()
        agent.start(own_house.openssh_port)
        port = own_house.dropbear_port
        relay.process.wait_for_line(f"publication-refused.*port={port}.*another program")
        agent.process.wait_for_line(f"service-refused.*port={port}.*another program")
        assert read_banner(own_house.openssh_port).startswith(b"SSH-2.0-")
    eventually(
        lambda: read_banner(own_house.dropbear_port).startswith(b"SSH-2.0-"),
        what="the freed port is served",
    )


def test_a_port_that_is_not_granted(own_house: House, dropbear: SshServer) -> None:
    stranger = free_port()
    own_house.agent.process.terminate()
    own_house.agent.configure(
        services(("ssh", dropbear.port, own_house.dropbear_port), ("more", dropbear.port, stranger))
    )
    agent = own_house.agent.start(own_house.dropbear_port)
    agent.wait_for_line(f"service-refused.*more.*port={stranger}")
    own_house.relay.process.wait_for_line(f"publication-refused.*port={stranger}")
    assert read_banner(own_house.dropbear_port).startswith(b"SSH-2.0-")
    assert read_banner(stranger) == b""


def test_a_port_of_another_agent(
    own_house: House, new_agent: NewAgent, dropbear: SshServer
) -> None:
    refused = own_house.relay.cli("invite", "cabin", "--port", str(own_house.dropbear_port))
    assert_fails(refused, "home", str(own_house.dropbear_port))
    assert refused.stdout == ""
    # Nor does it help to ask for it without an invitation to it.
    own, agent = free_port(), new_agent("cabin")
    agent.join(own_house.relay.invite("cabin", own), f"ssh={LOOPBACK}:{dropbear.port}")
    agent.configure(services(("ssh", dropbear.port, own_house.dropbear_port)))
    agent.start().wait_for_line(f"service-refused.*port={own_house.dropbear_port}")
    assert read_banner(own_house.dropbear_port).startswith(b"SSH-2.0-")


def test_a_target_that_comes_back(own_house: House) -> None:
    """It refuses for a while, which the agent's log names; nothing has to be restarted."""
    port = own_house.target.port
    own_house.target.close()
    assert read_banner(own_house.raw_port) == b""
    own_house.agent.process.wait_for_line(f"target-unreachable.*{port}")
    with socket.create_server((LOOPBACK, port)) as back, visit(own_house.raw_port):
        back.settimeout(LIMIT)
        back.accept()[0].close()


# --- The state folder ----------------------------------------------------------------------------


def no_more_writing() -> None:
    """In the process to be: every write to a file fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_a_full_disk_under_invite(own_house: House) -> None:
    relay = own_house.relay
    before = relay.cli("invitations", "--json").stdout
    assert_fails(relay.cli("invite", "cabin", before_exec=no_more_writing), status=2)
    assert relay.cli("invitations", "--json").stdout == before
    assert not list(relay.state.glob("*.tmp*"))
    assert read_banner(own_house.dropbear_port).startswith(b"SSH-2.0-")
    relay.invite("cabin")


def test_a_full_disk_at_the_first_start(new_relay: NewRelay) -> None:
    relay = new_relay()
    done = relay.cli("invite", "home", "--host", "relay.example", before_exec=no_more_writing)
    assert_fails(done, status=2)
    assert done.stdout == ""
    assert not (relay.state / "relay.key").exists(), "nothing is half-written"
    relay.invite("home", hosts=["relay.example"])


@pytest.mark.parametrize("command", [("invite", "home"), ("agents",), ("run",)], ids=" ".join)
def test_a_state_folder_that_is_a_file(new_relay: NewRelay, command: tuple[str, ...]) -> None:
    relay = new_relay()
    relay.state.write_text("not a folder")
    assert_fails(relay.cli(*command), str(relay.state), status=2)


def test_a_key_that_others_can_read(own_house: House) -> None:
    relay, agent = own_house.relay, own_house.agent
    relay.process.terminate()
    agent.process.terminate()
    for key in (*relay.state.glob("*.key"), *agent.state.glob("*.key")):
        key.chmod(0o644)
    assert_fails(relay.cli("invite", "cabin"), "chmod", "relay.key", status=2)
    agent.start()
    assert agent.process.wait() == 2
    assert "chmod" in agent.process.log[-1]


def test_a_state_folder_that_others_may_use(own_house: House) -> None:
    relay, agent = own_house.relay, own_house.agent
    relay.process.terminate()
    agent.process.terminate()
    for state in (relay.state, agent.state):
        state.chmod(0o750)
    for command in (("invite", "cabin"), ("agents",), ("run",)):
        assert_fails(relay.cli(*command), f"chmod 700 {relay.state}", status=2)
    agent.start()
    assert agent.process.wait() == 2
    assert f"chmod 700 {agent.state}" in agent.process.log[-1]
    relay.state.chmod(0o700)
    (relay.state / "registry.db").chmod(0o640)
    assert_fails(relay.cli("agents"), f"chmod 600 {relay.state / 'registry.db'}", status=2)


def test_a_foreign_state_folder(own_house: House) -> None:
    """Somebody else's files are refused, which only root can arrange for a test."""
    if os.getuid() != 0:
        assert Path("/etc").owner() == "root", "another user's folder for the check below"
        own_house.agent.state = Path("/etc")
        assert_fails(own_house.agent.try_join(own_house.invitation), "/etc", status=2)
        return
    own_house.relay.process.terminate()
    shutil.chown(own_house.relay.state / "relay.key", 65534)
    assert_fails(own_house.relay.cli("invite", "cabin"), "relay.key", status=2)


def test_a_registry_that_is_none(new_relay: NewRelay) -> None:
    relay = new_relay()
    relay.invite("home", hosts=["relay.example"])
    (relay.state / "registry.db").write_bytes(b"not a database, but long enough" * 100)
    assert_fails(relay.cli("agents"), "registry.db", status=2)


def test_two_servers_on_one_state_folder(own_house: House) -> None:
    done = own_house.relay.cli("run", "--listen", f"{LOOPBACK}:{free_port()}")
    assert_fails(done, str(own_house.relay.state))
    assert read_banner(own_house.dropbear_port).startswith(b"SSH-2.0-")


def test_a_listening_port_that_is_taken(new_relay: NewRelay, target: Target) -> None:
    wait_until_listening(target.port)
    done = new_relay().cli("run", "--listen", f"{LOOPBACK}:{target.port}", "--host", "localhost")
    assert_fails(done, f"{LOOPBACK}:{target.port}", status=1)
