from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from protocol.process.address import HostPort
from protocol.process.state import StateFolder
from protocol.wire.invitation import Invitation
from protocol.wire.noise import StaticKey
from relay_server import cli
from relay_server.commands import invite
from relay_server.registry.registry import Registry
from tests.support.ports import free_port
from tests.support.relay_commands import NOW, Run


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
