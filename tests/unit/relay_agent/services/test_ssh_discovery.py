"""Services, with a machine whose ports are a table and whose `uci` and `ubus` are scripts."""

from __future__ import annotations

import errno
import math
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from protocol.process.address import HostPort
from relay_agent.services import ssh_discovery
from relay_agent.services.ssh_discovery import (
    BANNER_TIMEOUT,
    MAX_PREAMBLE,
    DropbearSection,
    NoBanner,
    NoSshServer,
    dropbear_sections,
    find_ssh_server,
    interface_addresses,
    read_banner,
    sshd_ports,
)

BANNER = b"SSH-2.0-dropbear\r\n"


@dataclass
class Machine(trio.abc.SocketFactory):
    """What each local address sends, piece by piece; then it closes, or stays silent for ever."""

    sends: dict[tuple[str, int], list[bytes | Exception]] = field(default_factory=dict)
    silent_after: bool = False
    sockets: list[FakeSocket] = field(default_factory=list)

    def socket(self, *options: Any, **named: Any) -> FakeSocket:
        sock = FakeSocket(self)
        self.sockets.append(sock)
        return sock

    @property
    def dialled(self) -> list[str]:
        return [str(HostPort(*sock.address)) for sock in self.sockets]


class FakeSocket(trio.socket.SocketType):
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.closed = False
        self.sent: list[bytes] = []

    def setsockopt(self, *options: Any) -> None:
        pass

    async def connect(self, address: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.address = address[:2]
        if self.address not in self.machine.sends:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        self.pieces = list(self.machine.sends[self.address])

    async def send(self, data: Any, flags: int = 0) -> int:
        await trio.lowlevel.checkpoint()
        self.sent.append(bytes(data))
        return len(data)

    async def recv(self, count: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self.pieces:
            await trio.sleep(math.inf if self.machine.silent_after else 0)
            return b""
        piece = self.pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        if piece[count:]:
            self.pieces.insert(0, piece[count:])
        return piece[:count]

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FakeSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
async def machine() -> Machine:
    made = Machine()
    trio.socket.set_custom_socket_factory(made)
    return made


# --- the banner


async def banner(port: int = 22, *, wait: float = BANNER_TIMEOUT) -> str:
    return await read_banner("127.0.0.1", port, trio.current_time() + wait)


async def no_banner() -> str:
    with pytest.raises(NoBanner) as failed:
        await banner()
    assert "\n" not in str(failed.value)
    return str(failed.value)


@pytest.mark.parametrize(
    "pieces",
    [
        [BANNER],
        [bytes([byte]) for byte in BANNER],
        [b"SSH-2.0-dropbear\n"],
        [b"Keep out!\r\nThis is no SSH-2.0 line.\n", BANNER],
        [BANNER + b"\0\0\1\24\6\24 key exchange"],
    ],
)
async def test_the_banner_is_found_however_it_arrives(
    machine: Machine, pieces: list[bytes | Exception]
) -> None:
    machine.sends["127.0.0.1", 22] = pieces
    assert await banner() == "SSH-2.0-dropbear"
    assert [sock.closed for sock in machine.sockets] == [True]


async def test_a_greeting_goes_first_and_only_if_there_is_one(machine: Machine) -> None:
    machine.sends["127.0.0.1", 22] = [BANNER]
    await banner()
    await read_banner("127.0.0.1", 22, trio.current_time() + 1, greeting=b"SSH-2.0-me\r\n")
    assert [sock.sent for sock in machine.sockets] == [[], [b"SSH-2.0-me\r\n"]]


async def test_a_banner_cannot_play_tricks_on_a_terminal(machine: Machine) -> None:
    machine.sends["127.0.0.1", 22] = [b"SSH-2.0-\x1b[2J\xff\rx\r\n"]
    assert await banner() == "SSH-2.0-?[2J\N{REPLACEMENT CHARACTER}?x"


async def test_the_preamble_is_bounded(machine: Machine) -> None:
    longest = b"x" * (MAX_PREAMBLE - len(BANNER) - 1) + b"\n"
    machine.sends["127.0.0.1", 22] = [longest + BANNER]
    assert await banner() == "SSH-2.0-dropbear"
    machine.sends["127.0.0.1", 22] = [b"x" + longest + BANNER]
    assert await no_banner() == "127.0.0.1:22: answers, but not as an SSH server"
    assert all(sock.closed for sock in machine.sockets)


async def test_who_closes_early_or_fails_has_no_banner(machine: Machine) -> None:
    machine.sends["127.0.0.1", 22] = [b"SSH-2.0-cut"]
    assert await no_banner() == "127.0.0.1:22: closed without an SSH banner"
    machine.sends["127.0.0.1", 22] = [ConnectionResetError(errno.ECONNRESET, "reset")]
    assert await no_banner() == "127.0.0.1:22: reset"
    machine.sends["127.0.0.1", 22] = [OSError("odd")]
    assert await no_banner() == "127.0.0.1:22: odd"
    del machine.sends["127.0.0.1", 22]
    assert await no_banner() == "127.0.0.1:22: Connection refused"
    assert all(sock.closed for sock in machine.sockets)


async def test_a_silent_server_has_until_the_deadline(
    machine: Machine, autojump_clock: MockClock
) -> None:
    machine.silent_after = True
    machine.sends["127.0.0.1", 22] = [b"Welcome\r\n"]
    assert await no_banner() == "127.0.0.1:22: accepts, but shows no SSH banner in time"
    assert trio.current_time() == BANNER_TIMEOUT
    assert machine.sockets[0].closed


async def test_cancellation_closes_the_socket(machine: Machine, autojump_clock: MockClock) -> None:
    machine.silent_after = True
    machine.sends["127.0.0.1", 22] = []
    with trio.move_on_after(1.0) as scope:
        await banner()
    assert scope.cancelled_caught
    assert machine.sockets[0].closed


async def test_a_real_server_too() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(BANNER)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = next(
            listener.socket.getsockname()[1]
            for listener in listeners
            if listener.socket.family == socket.AF_INET
        )
        assert await banner(port, wait=60.0) == "SSH-2.0-dropbear"
        nursery.cancel_scope.cancel()


# --- where the SSH server is


@dataclass
class Commands:
    """A folder that is all of PATH, and scripts in it."""

    folder: Path

    def install(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)

    def print_by(self, name: str, arguments: str, text: str) -> None:
        """`name` prints `text` if it is called with these arguments, else it fails."""
        self.install(
            name, f"[ \"$*\" = '{arguments}' ] || exit 1\nwhile read -r line; do\n"
            f'printf "%s\\n" "$line"\ndone <<\'END\'\n{text}\nEND'
        )  # fmt: skip


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return Commands(folder)


async def find(folder: Path) -> str:
    return str(await find_ssh_server(sshd_config=folder / "sshd_config"))


async def test_port_22_is_the_usual_answer(
    machine: Machine, commands: Commands, tmp_path: Path
) -> None:
    machine.sends["127.0.0.1", 22] = [BANNER]
    assert await find(tmp_path) == "127.0.0.1:22"


async def test_a_server_on_ipv6_alone_is_found(
    machine: Machine, commands: Commands, tmp_path: Path
) -> None:
    machine.sends["::1", 22] = [BANNER]
    assert await find(tmp_path) == "[::1]:22"


async def test_something_else_on_port_22_is_passed_over(
    machine: Machine, commands: Commands, tmp_path: Path
) -> None:
    machine.sends["127.0.0.1", 22] = [b"HTTP/1.1 400 Bad Request\r\n\r\n"]
    machine.sends["127.0.0.1", 2222] = [BANNER]
    assert await find(tmp_path) == "127.0.0.1:2222"


async def test_the_ports_of_sshd_are_tried_with_those_of_its_folder(
    machine: Machine, commands: Commands, tmp_path: Path
) -> None:
    (tmp_path / "sshd_config").write_text("Port 2022\n")
    (tmp_path / "sshd_config.d").mkdir()
    (tmp_path / "sshd_config.d" / "b.conf").write_text("Port 2024\nPort 22\n")
    (tmp_path / "sshd_config.d" / "a.conf").write_text("Port 2023\n")
    machine.sends["127.0.0.1", 2024] = [BANNER]
    assert await find(tmp_path) == "127.0.0.1:2024"
    assert machine.dialled[::2] == [f"127.0.0.1:{port}" for port in (22, 2022, 2023, 2024)]
    assert machine.dialled[1] == "[::1]:22"


async def test_nothing_found_lists_what_was_tried(
    machine: Machine, commands: Commands, tmp_path: Path
) -> None:
    machine.sends["::1", 2222] = [b"220 mail\r\n"]
    with pytest.raises(NoSshServer) as failed:
        await find(tmp_path)
    assert str(failed.value) == (
        "no SSH server found on this machine (tried "
        "127.0.0.1:22: Connection refused; [::1]:22: Connection refused; "
        "127.0.0.1:2222: Connection refused; [::1]:2222: closed without an SSH banner); "
        "start one or name it with --service ssh=HOST:PORT"
    )


async def test_each_candidate_has_its_own_two_seconds(
    machine: Machine, commands: Commands, tmp_path: Path, autojump_clock: MockClock
) -> None:
    machine.silent_after = True
    machine.sends = {("127.0.0.1", 22): [], ("::1", 22): [], ("127.0.0.1", 2222): [BANNER]}
    assert await find(tmp_path) == "127.0.0.1:2222"
    assert trio.current_time() == 2 * BANNER_TIMEOUT


UCI = """\
dropbear.main=dropbear
dropbear.main.enable='1'
dropbear.main.PasswordAuth='on'
dropbear.main.Port='2200'
dropbear.main.Interface='lan'"""

UBUS = '{"up": true, "ipv4-address": [{"address": "192.168.1.1", "mask": 24}], "ipv6-address": []}'


async def test_on_openwrt_the_configuration_comes_first(
    machine: Machine, commands: Commands, tmp_path: Path
) -> None:
    commands.print_by("uci", "-q show dropbear", UCI)
    machine.sends = {("127.0.0.1", 2200): [BANNER], ("127.0.0.1", 22): [BANNER]}
    assert await find(tmp_path) == "127.0.0.1:2200"


async def test_a_dropbear_bound_to_an_interface_is_found_at_its_address(
    machine: Machine, commands: Commands, tmp_path: Path
) -> None:
    commands.print_by("uci", "-q show dropbear", UCI)
    commands.print_by("ubus", "call network.interface.lan status", UBUS)
    machine.sends["192.168.1.1", 2200] = [BANNER]
    assert await find(tmp_path) == "192.168.1.1:2200"
    assert machine.dialled == ["127.0.0.1:2200", "[::1]:2200", "192.168.1.1:2200"]


async def test_a_dropbear_without_an_interface_is_on_loopback_or_nowhere(
    machine: Machine, commands: Commands, tmp_path: Path
) -> None:
    commands.print_by(
        "uci", "-q show dropbear", "dropbear.main=dropbear\ndropbear.main.Port='2200'"
    )
    machine.sends["127.0.0.1", 22] = [BANNER]
    assert await find(tmp_path) == "127.0.0.1:22"
    assert machine.dialled == ["127.0.0.1:2200", "[::1]:2200", "127.0.0.1:22"]


@pytest.mark.parametrize("script", ["exit 1", "echo 'uci: Entry not found'", "printf '\\377'"])
async def test_a_uci_that_knows_nothing_leaves_the_usual_places(
    machine: Machine, commands: Commands, tmp_path: Path, script: str
) -> None:
    commands.install("uci", script)
    machine.sends["127.0.0.1", 22] = [BANNER]
    assert await find(tmp_path) == "127.0.0.1:22"


async def test_a_command_that_cannot_be_run_is_no_command(
    machine: Machine, commands: Commands, tmp_path: Path
) -> None:
    (commands.folder / "uci").write_bytes(b"\x7fELF of another machine")
    (commands.folder / "uci").chmod(0o700)
    machine.sends["127.0.0.1", 22] = [BANNER]
    assert await find(tmp_path) == "127.0.0.1:22"


async def test_a_command_that_hangs_is_given_up(
    machine: Machine, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On the real clock: a jump would also pass over the grace that trio gives a killed process.
    monkeypatch.setattr(ssh_discovery, "COMMAND_TIMEOUT", 0.05)
    commands.install("uci", "while :; do :; done")
    machine.sends["127.0.0.1", 22] = [BANNER]
    assert await find(tmp_path) == "127.0.0.1:22"


def test_dropbear_sections_are_read() -> None:
    text = """\
dropbear.@dropbear[0]=dropbear
dropbear.@dropbear[0].PasswordAuth='on'
dropbear.@dropbear[1]=dropbear
dropbear.@dropbear[1].Port='2201'
dropbear.@dropbear[1].enable='0'
dropbear.@dropbear[2]=dropbear
dropbear.@dropbear[2].Port='2202'
dropbear.@dropbear[2].DirectInterface='wan'
dropbear.@dropbear[2].enable='1'
dropbear.odd.Port='none'
dropbear.late.Port='2203'
dropbear.late.Interface='lan'
network.lan.proto='static'
noise
"""
    assert dropbear_sections(text) == [
        DropbearSection(22, ""),
        DropbearSection(2202, "wan"),
        DropbearSection(2203, "lan"),
    ]


@pytest.mark.parametrize("status", ["", "null", "[]", "{}", '{"ipv4-address": [{}]}', "3", "{"])
def test_an_interface_that_is_down_has_no_address(status: str) -> None:
    assert interface_addresses(status) == []


def test_all_addresses_of_an_interface_are_read() -> None:
    status = '{"ipv4-address": [{"address": "10.0.0.1"}, {"address": "10.0.1.1"}]}'
    assert interface_addresses(status) == ["10.0.0.1", "10.0.1.1"]


@given(st.text())
def test_no_output_of_a_command_and_no_configuration_raises(text: str) -> None:
    dropbear_sections(text)
    dropbear_sections(f"dropbear.{text}")
    interface_addresses(text)
    sshd_ports(text)
    sshd_ports(f"Port {text}")


def test_the_ports_of_an_sshd_config() -> None:
    config = """\
# Port 1
Port 2
  port=3
PORT "4" # a remark
Port 0
Port 65535
Port 65536
Port many
GatewayPorts 5
Portable 6
"""
    assert sshd_ports(config) == [2, 3, 4, 65535]


def test_a_file_that_cannot_be_read_names_no_port(tmp_path: Path) -> None:
    assert ssh_discovery._text(tmp_path) == ""
