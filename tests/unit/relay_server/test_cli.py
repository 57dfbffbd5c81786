from __future__ import annotations

import errno
import itertools
import json
import os
import runpy
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from protocol.process.address import HostPort
from protocol.process.cli.command import CommandFailed
from protocol.process.cli.text import span
from protocol.process.control.client import SOCKET
from protocol.process.state import StateFolder
from protocol.wire.invitation import Invitation
from protocol.wire.noise import StaticKey
from relay_server import cli
from relay_server.__main__ import main as entry_point
from relay_server.commands import invite, rotate_key, upgrade
from relay_server.registry import open as commands_state
from relay_server.registry.open import LOCK
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import MAX_FORMER, RelayKeys, load_or_make
from tests.support.ports import free_port

NOW = 1_000_000.0
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed time, every port free, and logging left as pytest has it."""
    monkeypatch.setattr("time.time", lambda: NOW)
    monkeypatch.setattr(invite, "is_free", lambda port: True)
    monkeypatch.setattr("protocol.process.logs.configure", lambda level, log_format: None)


@pytest.fixture
def run(state: StateFolder, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main([*arguments, "--state-dir", str(state.path)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def usage(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def usage(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return usage


def enrol(state: StateFolder, name: str, number: int, *ports: int) -> None:
    with Registry(state) as registry:
        token = bytes([number]) * 16
        registry.invite(
            name, token, now=NOW, lifetime=1, port_range=range(11111, 11120), ports=ports
        )
        registry.redeem(token, bytes([number]) * 32, NOW)


@contextmanager
def server(state: StateFolder, answer: dict[str, Any]) -> Iterator[list[str]]:
    """Stands for the running process: answers once, and tells what it was asked."""
    asked: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state.path / SOCKET))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as accepted:
                asked.append(json.loads(accepted.recv(1000))["command"])
                accepted.sendall(json.dumps(answer).encode() + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join(10)


# invite


def test_standard_output_is_the_invitation_alone(run: Run, state: StateFolder) -> None:
    status, out, err = run("invite", "home", "--port", "9000", "--host", "vps.example.net")
    assert status == 0
    assert out.count("\n") == 1
    invitation = Invitation.decode(out)
    assert out == invitation.encode() + "\n"
    assert invitation.hosts == (("vps.example.net", 7022),)
    key = StaticKey.from_private(bytes.fromhex(state.read_secret("relay.key") or ""))
    assert invitation.relay_key == key.public
    assert "home may publish port 9000." in err
    assert "Within 1h" in err
    assert "relay-agent join" in err
    assert "ssh -p 9000 root@vps.example.net" in err
    assert out.strip() not in err
    with Registry(state) as registry:
        agent = registry.redeem(invitation.token, b"k" * 32, NOW + 3599)
        assert agent.ports == (9000,)
        assert registry.hosts() == (HostPort("vps.example.net", 7022),)


def test_a_free_port_is_chosen_and_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invite, "is_free", lambda port: port != 11111)
    _, _, err = run("invite", "home", "--host", "vps")
    assert "home may publish port 11112.\n" in err


def test_several_ports_are_named(run: Run) -> None:
    _, _, err = run("invite", "home", "--host", "vps", "--port", "90", "--port", "80")
    assert "home may publish ports 90, 80.\n" in err


def test_a_port_that_another_program_holds_is_remarked_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invite, "is_free", lambda port: port != 90)
    status, _, err = run("invite", "home", "--host", "vps", "--port", "80", "--port", "90")
    assert status == 0
    assert "Another program listens on port 90 now; it has to let go first.\n" in err
    # A name that has the port already may be the one who listens.
    _, _, err = run("invite", "home", "--port", "90")
    assert "Another program" not in err


def test_the_state_folder_may_be_named_before_the_command(
    state: StateFolder, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("invite", "home", "--host", "vps")
    assert cli.main(["--state-dir", str(state.path), "invitations"]) == 0
    assert "home" in capsys.readouterr().out


def test_more_ports_come_before_those_it_has(run: Run) -> None:
    run("invite", "home", "--host", "vps", "--port", "90", "--port", "80", "--port", "70")
    _, _, err = run("invite", "home")
    assert "home may publish ports 90, 80, 70.\n" in err
    _, _, err = run("invite", "home", "--port", "60", "--port", "80")
    assert "home may publish ports 60, 80, 90, 70.\n" in err
    assert "ssh -p 60 root@vps" in err


def test_hosts_keep_their_order_and_are_remembered_if_none_were(run: Run) -> None:
    _, out, _ = run("invite", "home", "--host", "a:443", "--host", "[::1]")
    assert Invitation.decode(out).hosts == (("a", 443), ("::1", 7022))
    _, out, _ = run("invite", "home", "--host", "b")
    assert Invitation.decode(out).hosts == (("b", 7022),)
    _, out, _ = run("invite", "home")
    assert Invitation.decode(out).hosts == (("a", 443), ("::1", 7022))


def test_without_any_host_nothing_can_be_said(run: Run, state: StateFolder) -> None:
    status, out, err = run("invite", "home")
    assert (status, out) == (2, "")
    assert err.startswith("relay-server: which name of this VPS do agents dial? ")
    assert err.count("\n") == 1


def test_the_file_in_the_state_folder_counts_before_the_first_run(
    run: Run, state: StateFolder
) -> None:
    state.ensure()
    (state.path / "server.toml").write_text(
        'hosts = ["vps"]\nlisten = ["[::]:443"]\nports = "500-501"\n'
    )
    _, out, err = run("invite", "home")
    assert Invitation.decode(out).hosts == (("vps", 443),)
    assert "port 500." in err


def test_what_run_was_told_counts(run: Run, state: StateFolder) -> None:
    state.ensure()
    with Registry(state) as registry:
        registry.remember_hosts((HostPort("vps", 443),))
        registry.remember_link_ports((443, 500))
        registry.remember_port_range(range(500, 502))
    _, out, err = run("invite", "home")
    assert Invitation.decode(out).hosts == (("vps", 443),)
    assert "port 501." in err  # 500 is where agents dial in
    status, _, err = run("invite", "office", "--port", "443")
    assert (status, err) == (
        1,
        "relay-server: port 443 is where agents dial in; choose another\n",
    )


def test_a_port_of_another_agent_is_refused_by_name(run: Run) -> None:
    run("invite", "home", "--port", "9000", "--host", "vps")
    status, out, err = run("invite", "office", "--port", "9000")
    assert (status, out) == (1, "")
    assert err == "relay-server: port 9000 is granted to home\n"


def test_the_life_of_an_invitation_can_be_chosen(run: Run, state: StateFolder) -> None:
    _, _, err = run("invite", "home", "--host", "vps", "--expires", "90m")
    assert "Within 1h30m" in err
    with Registry(state) as registry:
        assert registry.invitations()[0].expires == NOW + 5400


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("invite",), "the following arguments are required: NAME"),
        (("invite", "a b"), "argument NAME: expected a name of 1 to 32 letters"),
        (("invite", "a", "--port", "0"), "argument --port: expected a port from 1 to 65535, not"),
        (("invite", "a", "--port", "x"), "argument --port: expected a port from 1 to 65535, not"),
        (("invite", "a", "--expires", "1y"), "argument --expires: expected a duration such as"),
        (("invite", "a", "--expires", "31d"), "argument --expires: expected 1s to 30d, not"),
        (("invite", "a", "--host", "http://x"), "argument --host: expected HOST or HOST:PORT"),
        (("run", "--listen", "x:1"), "argument --listen: expected an address of this machine"),
        (("run", "--bind", "x"), "argument --bind: expected an address of this machine, not 'x'"),
        (("run", "--lis", "[::]:1"), "unrecognized arguments: --lis [::]:1"),
        (("invitations", "--json", "--cancel", "a"), "not allowed with argument --json"),
        (("fly",), "invalid choice: 'fly'"),
    ],
)
def test_wrong_options_end_with_what_is_expected(
    usage: Callable[..., str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in usage(*arguments)


def test_the_number_of_hosts_has_a_bound(run: Run) -> None:
    hosts = [word for number in range(9) for word in ("--host", f"h{number}")]
    assert run("invite", "home", *hosts[:16])[0] == 0
    for command in (("invite", "home"), ("run",)):
        status, _, err = run(*command, *hosts)
        assert (status, err) == (2, "relay-server: --host: expected at most 8 hosts, not 9\n")


# The relay's key


def test_the_key_is_made_once(run: Run, state: StateFolder) -> None:
    keys = {
        Invitation.decode(run("invite", name, "--host", "vps")[1]).relay_key for name in ("a", "b")
    }
    assert len(keys) == 1


def test_a_missing_key_stops_a_relay_that_agents_know(run: Run, state: StateFolder) -> None:
    run("invite", "home", "--host", "vps")
    (state.path / "relay.key").unlink()
    status, out, err = run("invite", "home")
    assert (status, out) == (2, "")
    assert err.startswith(f"relay-server: {state.path / 'relay.key'}: missing; ")
    run("invitations", "--cancel", "home")
    enrol(state, "home", 1)
    assert run("invite", "home")[0] == 2
    run("revoke", "home")
    assert run("invite", "home")[0] == 0


@pytest.mark.parametrize("text", ["", "zz" * 32, "00" * 31, "00" * 33])
def test_a_broken_key_is_not_shown(run: Run, state: StateFolder, text: str) -> None:
    state.ensure()
    state.write_secret("relay.key", text)
    status, _, err = run("invite", "home", "--host", "vps")
    assert status == 2
    assert err.endswith("relay.key: expected a private key of 64 hexadecimal digits\n")
    assert not text or text not in err


def test_a_key_that_others_may_read_is_refused(run: Run, state: StateFolder) -> None:
    run("invite", "home", "--host", "vps")
    (state.path / "relay.key").chmod(0o644)
    status, _, err = run("invite", "home")
    assert (status, err.count("\n")) == (2, 1)
    assert f"run: chmod 600 {state.path / 'relay.key'}" in err


def test_of_two_first_commands_one_makes_the_key(
    run: Run, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = StaticKey.generate()
    read = StateFolder.read_secret

    def missed(self: StateFolder, name: str) -> str | None:
        monkeypatch.setattr(StateFolder, "read_secret", read)
        self.write_secret(name, other.private.hex())  # the other one, a moment later
        return None

    monkeypatch.setattr(StateFolder, "read_secret", missed)
    _, out, _ = run("invite", "home", "--host", "vps")
    assert Invitation.decode(out).relay_key == other.public


# invitations


def test_pending_invitations_are_listed(run: Run) -> None:
    run("invite", "home", "--host", "vps", "--expires", "2d")
    run("invite", "office", "--port", "9000", "--port", "80")
    status, out, err = run("invitations")
    assert (status, err) == (0, "")
    assert out == "NAME    PORTS    EXPIRES\nhome    11111    in 2d\noffice  9000 +1  in 1h\n"
    status, out, _ = run("invitations", "--json")
    assert json.loads(out)[1] == {
        "name": "office",
        "ports": [9000, 80],
        "created": int(NOW),
        "expires": int(NOW) + 3600,
        "expired": False,
    }


def test_an_expired_invitation_is_marked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("invite", "home", "--host", "vps")
    monkeypatch.setattr("time.time", lambda: NOW + 3600)
    assert run("invitations")[1].endswith("home  11111  expired\n")
    assert json.loads(run("invitations", "--json")[1])[0]["expired"] is True


def test_an_invitation_can_be_cancelled(run: Run) -> None:
    run("invite", "home", "--host", "vps")
    assert run("invitations", "--cancel", "home") == (
        0,
        "",
        "the invitation for home is cancelled\n",
    )
    assert run("invitations") == (0, "", "no invitation is pending\n")
    assert run("invitations", "--json") == (0, "[]\n", "")
    assert run("invitations", "--cancel", "home") == (
        1,
        "",
        "relay-server: there is no pending invitation for home\n",
    )


@pytest.fixture
def somebody_else(relay_state: StateFolder) -> Iterator[None]:
    """Run as a user who may not look into the folder."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        relay_state.path.chmod(0)
        yield
        relay_state.path.chmod(0o700)


@pytest.mark.usefixtures("somebody_else")
@pytest.mark.parametrize("command", [("agents",), ("status",), ("revoke", "home")])
def test_a_folder_of_somebody_elses_is_one_line(run: Run, command: tuple[str, ...]) -> None:
    status, out, err = run(*command)
    assert (status, out) == (2, "")
    assert "no access" in err or "not writable" in err


@pytest.mark.parametrize("command", [("invitations",), ("agents",), ("revoke", "home")])
def test_looking_makes_nothing(run: Run, state: StateFolder, command: tuple[str, ...]) -> None:
    status, out, err = run(*command)
    assert (status, out) == (2, "")
    assert err.startswith(f"relay-server: {state.path}: no relay has its state here; ")
    assert not state.path.exists()


# agents

HERE = {
    "name": "home",
    "attached": True,
    "address": "203.0.113.9:4711",
    "since": 3723.4,
    "streams": 2,
    "ports": [11111],
    "refused": {"evicted for another visitor": 36, "not an SSH client": 1200},
    "services": [
        {
            "service": "ssh",
            "port": 11111,
            "refused": {"evicted for another visitor": 36, "not an SSH client": 1100},
        },
        {"service": "shell", "port": 11112, "refused": {"not an SSH client": 100}},
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
    refused = {"service": "s" * 64, "port": 1, "refused": {"too many visitors from there": 10**6}}
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


# Who may visit


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
    ("arguments", "said"),
    [
        (("home",), "expected --allow or --deny, or --lift to admit everybody again"),
        (("home", "--lift", "--deny", "::1"), "expected --allow or --deny, or --lift to admit"),
        (("office", "--lift"), "there is no agent office"),
        (("home", "--port", "9", "--lift"), "port 9 is not granted to home"),
    ],
)
def test_what_cannot_be_restricted_is_refused(
    run: Run, state: StateFolder, arguments: tuple[str, ...], said: str
) -> None:
    state.ensure()
    enrol(state, "home", 1, 9000)
    status, out, err = run("restrict", *arguments)
    assert (status, out) == (1, "")
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


# revoke


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


# export


def test_no_terminal_is_shown_the_keys(
    run: Run, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.ensure()
    enrol(state, "home", 1)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    status, out, err = run("export", "-")
    assert (status, out) == (1, "")
    assert "expected a file or a pipe" in err


def test_a_file_that_cannot_be_written_is_named(run: Run, state: StateFolder) -> None:
    state.ensure()
    enrol(state, "home", 1)
    status, _, err = run("export", "/dev/none/relay.backup")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("relay-server: /dev/none/relay.backup: ")


# move


@pytest.mark.parametrize("arguments", [[], ["a.example", "--cancel"]])
def test_move_wants_a_host_or_none(run: Run, state: StateFolder, arguments: list[str]) -> None:
    status, _, err = run("move", *arguments)
    assert (status, err) == (2, "relay-server: expected HOST, or --cancel\n")


def test_a_move_has_as_many_hosts_as_an_invitation(run: Run, state: StateFolder) -> None:
    status, _, err = run("move", *(f"h{number}" for number in range(9)))
    assert (status, err) == (2, "relay-server: HOST: expected at most 8 hosts, not 9\n")


def test_a_move_while_the_relay_is_not_running_is_told_later(run: Run, state: StateFolder) -> None:
    state.ensure()
    enrol(state, "home", 1)
    with Registry(state) as registry:
        registry.remember_link_ports([443])
    assert run("move", "a.example", "[::1]:5") == (
        0,
        "",
        "to be told when they are here next: home\n",
    )
    with Registry(state) as registry:
        assert registry.announced() == (HostPort("a.example", 443), HostPort("::1", 5))
    assert run("move", "--cancel")[0] == 0
    with Registry(state) as registry:
        assert registry.announced() == ()


# upgrade


def upgraded(
    run: Run, state: StateFolder, monkeypatch: pytest.MonkeyPatch, ages: Iterator[float | None]
) -> tuple[int, str, str]:
    """`relay-server upgrade` where a second passes between two looks, and the relay has an age."""
    state.ensure()
    now = itertools.count()

    def ask(_: object, command: str) -> dict[str, Any]:
        if command == "upgrade":
            return {}
        age = next(ages)
        if age is None:
            raise CommandFailed("between the two")
        return {"age": age, "version": "2.0", "agents": [{"streams": [{}, {}]}]}

    monkeypatch.setattr(upgrade, "ask", ask)
    monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    monkeypatch.setattr("time.sleep", lambda _: None)
    return run("upgrade")


def test_an_upgrade_is_over_when_a_younger_one_answers(
    run: Run, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = upgraded(run, state, monkeypatch, iter([100.0, None, 0.5]))
    assert answer == (0, "relay-server 2.0 goes on, with 2 visitors\n", "")


def test_an_upgrade_that_does_not_come_about_is_told_of(
    run: Run, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = upgraded(run, state, monkeypatch, itertools.repeat(1000.0))
    assert answer == (1, "", "relay-server: the relay goes on as it was; its log says why\n")


# reload


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


# run


class Served:
    """What the server was started with."""

    arguments: tuple[Any, ...] = ()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    served = Served()

    async def serve(*arguments: Any, **_: Any) -> None:
        served.arguments = arguments

    module = ModuleType("relay_server.process.run")
    module.serve = serve  # type: ignore[attr-defined]  # a module made up here
    monkeypatch.setitem(sys.modules, "relay_server.process.run", module)
    return served


def test_run_makes_the_state_and_serves(run: Run, served: Served, state: StateFolder) -> None:
    assert run("run") == (0, "", "")
    config, folder, registry, keys = served.arguments
    assert config.listen == (HostPort("::", 7022),)
    assert folder == state
    assert isinstance(registry, Registry)
    assert (state.read_secret("relay.key") or "").strip() == keys.current.private.hex()
    assert sorted(file.name for file in state.path.iterdir()) == [
        "registry.db",
        "relay.key",
        "run.lock",
    ]


def test_run_remembers_what_invitations_need(run: Run, served: Served, tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text('ports = "500-501"\nlisten = ["[::]:7022"]\nhosts = ["nobody"]\n')
    options = ("--config", str(file), "--listen", "0.0.0.0:443", "--host", "vps")
    assert run("run", *options, "--bind", "127.0.0.1")[0] == 0
    assert served.arguments[0].bind == "127.0.0.1"
    _, out, err = run("invite", "home")
    assert Invitation.decode(out).hosts == (("vps", 443),)
    assert "port 500." in err
    assert run("run", "--listen", "[::]:7022")[0] == 0  # the hosts stay
    _, out, _ = run("invite", "home")
    assert Invitation.decode(out).hosts == (("vps", 443),)


@pytest.mark.parametrize(
    ("toml", "options", "logged"),
    [
        ("", (), ("info", "text")),
        ("log_level = 'debug'\nlog_format = 'json'", (), ("debug", "json")),
        (
            "log_level = 'debug'",
            ("--log-level", "error", "--log-format", "json"),
            ("error", "json"),
        ),
    ],
)
def test_log_options_go_over_the_file(
    run: Run,
    served: Served,
    state: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    toml: str,
    options: tuple[str, ...],
    logged: tuple[str, str],
) -> None:
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr("protocol.process.logs.configure", lambda *how: configured.append(how))
    state.ensure()
    (state.path / "server.toml").write_text(toml)
    assert run("run", *options)[0] == 0
    assert configured[-1] == logged


def test_a_second_server_on_one_state_folder_is_refused(
    run: Run, served: Served, state: StateFolder
) -> None:
    state.ensure()
    with state.lock(LOCK):
        status, _, err = run("run")
    assert (status, err) == (
        2,
        f"relay-server: {state.path}: already in use by another process\n",
    )
    assert served.arguments == ()


def test_a_wrong_file_stops_the_start(run: Run, served: Served, state: StateFolder) -> None:
    state.ensure()
    (state.path / "server.toml").write_text("lisen = 5")
    assert run("run") == (
        2,
        "",
        f"relay-server: {state.path / 'server.toml'}: lisen: unknown key; did you mean listen?\n",
    )
    assert run("run", "--config", "/none")[2] == "relay-server: /none: no such file\n"


# The rest


def test_without_a_state_dir_the_default_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "default_state_dir", lambda program: tmp_path / program)
    assert cli.main(["agents"]) == 2
    assert f"{tmp_path / 'relay-server'}: no relay" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [(), ("run",), ("invite",), ("invitations",), ("agents",), ("revoke",)]
)
def test_help_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "--log-level" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0.9, "0s"),
        (59, "59s"),
        (60, "1m"),
        (61, "1m1s"),
        (3600, "1h"),
        (3661, "1h1m"),
        (86400 * 3 + 3600 * 2 + 61, "3d2h"),
        (86400 + 59, "1d"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.fixture
def is_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], bool]:
    monkeypatch.undo()
    return invite.is_free


def test_a_port_that_a_program_holds_is_not_free(is_free: Callable[[int], bool]) -> None:
    port = free_port()
    for host in ("127.0.0.1", "::1"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as holder:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((host, port))
            holder.listen()
            assert not is_free(port)
        assert is_free(port)


def test_a_kernel_without_ipv6_has_free_ports(
    is_free: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", none)
    assert is_free(11111)


def test_the_entry_points(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["anything", "agents", "--state-dir", str(state.path)])
    monkeypatch.delitem(sys.modules, "relay_server.__main__")  # or runpy warns of it
    for start in (entry_point, lambda: runpy.run_module("relay_server", run_name="__main__")):
        with pytest.raises(SystemExit) as caught:
            start()
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith("relay-server: ")


# rotate-key


@pytest.fixture
def relay_state(state: StateFolder) -> StateFolder:
    """Of a relay with an agent, and one that is invited."""
    state.ensure()
    with Registry(state) as registry:
        load_or_make(state, registry)
    enrol(state, "home", 1)
    return state


def keys_of(state: StateFolder) -> RelayKeys:
    with Registry(state) as registry:
        return load_or_make(state, registry)


def test_rotating_keeps_the_old_key_for_those_behind(run: Run, relay_state: StateFolder) -> None:
    old = keys_of(relay_state).current.public
    assert run("rotate-key") == (
        0,
        "",
        "the relay has a new key\nnot followed yet: home; the old key answers until they have\n",
    )
    keys = keys_of(relay_state)
    assert [key.public for key in keys.former] == [old]
    assert run("agents")[2].endswith("not followed to the relay's new key yet: home\n")
    assert json.loads(run("agents", "--json")[1])[0]["follows"] is False
    with Registry(relay_state) as registry:
        registry.follow("home", bytes([1]) * 32, keys.current.public)
    assert json.loads(run("agents", "--json")[1])[0]["follows"] is True
    # New invitations carry the new key.
    _, out, _ = run("invite", "cabin", "--host", "vps")
    assert Invitation.decode(out).relay_key == keys.current.public


def test_rotating_at_once_ends_the_old_key_and_names_who_is_lost(
    run: Run, relay_state: StateFolder
) -> None:
    run("invite", "cabin", "--host", "vps")
    assert run("rotate-key", "--now")[2].splitlines() == [
        "the relay has a new key",
        "the old key is worth nothing now",
        "cancelled, since they carry the old key: invitations of cabin",
        "not followed, so they need a new invitation: home",
    ]
    assert keys_of(relay_state).former == ()
    assert "no invitation is pending" in run("invitations")[2]


def test_so_many_former_keys_and_no_more(run: Run, relay_state: StateFolder) -> None:
    for _ in range(MAX_FORMER):
        assert run("rotate-key")[0] == 0
    before = keys_of(relay_state).current.public
    status, _, err = run("rotate-key")
    assert (status, "3 former keys are in use still" in err) == (1, True)
    assert keys_of(relay_state).current.public == before
    assert "not followed, so they need a new invitation: home" in run("rotate-key", "--retire")[2]
    keys = keys_of(relay_state)
    assert (keys.current.public, keys.former) == (before, ())
    assert run("rotate-key", "--retire")[2] == "relay-server: there is no former key to end\n"
    for _ in range(MAX_FORMER):
        assert run("rotate-key")[0] == 0
    assert run("rotate-key", "--now")[0] == 0


def test_agents_that_are_here_are_waited_for(
    run: Run, relay_state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(_: object, command: str) -> dict[str, Any]:
        asked.append(command)
        here = {"name": "home", "following": True}
        return {"agents": [here, {"name": "cabin", "following": False}]}

    def follow(_: float) -> None:
        with Registry(relay_state) as registry:
            registry.follow("home", bytes([1]) * 32, keys_of(relay_state).current.public)

    enrol(relay_state, "cabin", 2)
    for module in (rotate_key, commands_state):
        monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr("time.sleep", follow)
    _, _, err = run("rotate-key")
    assert err.splitlines()[1].startswith("not followed yet: cabin;")
    assert asked == ["agents", "refresh"]


def test_agents_that_are_here_are_not_waited_for_for_ever(
    run: Run, relay_state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, rotate_key.FOLLOW_LIMIT - 0.1, rotate_key.FOLLOW_LIMIT])
    for module in (rotate_key, commands_state):
        monkeypatch.setattr(
            module, "ask", lambda *_: {"agents": [{"name": "home", "following": True}]}
        )
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert "not followed yet: home" in run("rotate-key")[2]
    assert next(clock, None) is None


def test_a_server_that_does_not_answer_is_told_of(
    run: Run, relay_state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(_: object, command: str) -> None:
        if command == "refresh":
            raise CommandFailed("it hangs")

    for module in (rotate_key, commands_state):
        monkeypatch.setattr(module, "ask", ask)
    status, _, err = run("rotate-key")
    assert status == 1
    assert err == "relay-server: the key is rotated, but not in use yet: it hangs\n"


def test_one_rotation_at_a_time(run: Run, relay_state: StateFolder) -> None:
    with relay_state.lock(rotate_key.LOCK):
        status, _, err = run("rotate-key")
    assert (status, "already in use by another process" in err) == (2, True)
    assert keys_of(relay_state).former == ()


def test_rotating_needs_a_relay(run: Run) -> None:
    status, _, err = run("rotate-key")
    assert (status, "no relay has its state here" in err) == (2, True)
