"""The steps of `doctor` on the machine that the relay runs on: service, clock, names, firewall."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from protocol.process.address import HostPort
from protocol.process.cli.checks import WRITTEN, Finding, failed, note, ok
from protocol.process.service_manager import has_systemd
from relay_server.doctor.context import Context
from relay_server.doctor.firewall import iptables_closed, nft_closed

UNIT: Final = "relay-server.service"
# A sound resolver, and any of the programs below, has answered by then.
PATIENCE: Final = 5.0
# adjtimex(2): the kernel's answer while nobody keeps its clock.
_TIME_ERROR: Final = 5


async def check_service(_: Context) -> Finding:
    """Whether the relay is started again after a crash or a reboot."""
    install = "sudo deploy/systemd/install relay-server (docs/systemd.md)"
    if not has_systemd():
        return note(
            "no systemd runs here, so no listening socket outlives a restart",
            "see that whatever runs here starts it again, and after a reboot",
        )
    wanted = "LoadState,ActiveState,UnitFileState,NRestarts,FileDescriptorStoreMax,WatchdogUSec"
    said = await output("systemctl", "show", UNIT, f"--property={wanted}")
    if said is None:
        return note("systemctl does not answer", "try it by hand: systemctl status relay-server")
    unit = dict(line.partition("=")[::2] for line in said.splitlines())
    if unit.get("LoadState") != "loaded":
        return note(f"there is no {UNIT}: a reboot ends the relay", install)
    if unit.get("ActiveState") == "failed":
        return failed("its service has failed", "see why: journalctl -u relay-server")
    lacks = []
    if unit.get("UnitFileState") not in ("enabled", "enabled-runtime"):
        lacks.append("it is not started at boot (systemctl enable relay-server)")
    if unit.get("FileDescriptorStoreMax", "0") == "0":
        lacks.append("its sockets do not outlive a restart (FileDescriptorStoreMax=)")
    if unit.get("WatchdogUSec", "0") in ("0", "infinity"):
        lacks.append("nobody notices if it hangs (WatchdogSec=)")
    if lacks:
        return note("; ".join(lacks), f"the unit of this version has all of it: {install}")
    times = unit.get("NRestarts", "0")
    return ok(f"{UNIT} is {unit.get('ActiveState')}, and was started again {times} times")


async def check_clock(_: Context) -> Finding:
    """Invitations expire by it, and logs are read by it; nothing else needs it."""
    now = time.time()
    text = f"it says {time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime(now))}"
    if now < WRITTEN:
        return failed(f"{text}, which is past", "set it (timedatectl set-ntp true)")
    if _kernel_clock() == _TIME_ERROR:
        return note(
            f"{text}; nobody keeps it right", "timedatectl set-ntp true, or another NTP client"
        )
    return ok(text)


def _kernel_clock() -> int:
    """What adjtimex(2) returns; below 0 where it may not be asked."""
    timex = ctypes.create_string_buffer(512)  # of 208 bytes; modes 0: only read
    try:
        return int(ctypes.CDLL(None).adjtimex(timex))
    except (OSError, AttributeError):
        return -1


async def check_address(context: Context) -> Finding:
    """Whether what agents are told to dial leads here."""
    if not context.hosts:
        return note(
            "it is not known where agents reach this machine",
            'start the relay with --host NAME once, or put hosts = ["NAME"] into server.toml',
        )
    found, notes = [], []
    for host in context.hosts:
        addresses = await _look_up(host.host)
        if not addresses:
            return failed(
                f"the name {host.host} does not resolve here",
                "put that right at whoever has the name, or invite with --host ADDRESS",
            )
        found.append(str(host) if host.host in addresses else f"{host} is {', '.join(addresses)}")
        foreign = [one for one in addresses if not _is_ours(one)]
        if foreign:
            notes.append(f"{', '.join(foreign)} is no address of this machine, so behind NAT")
        private = [one for one in addresses if not ipaddress.ip_address(one).is_global]
        if private:
            notes.append(f"{', '.join(private)} is not reached from the Internet")
        if host.port not in context.link_ports:
            notes.append(f"the relay does not listen on port {host.port} itself")
    text = "; ".join(found + notes)
    if notes:
        return note(
            text,
            "fine if what is in between forwards to here: relay-agent doctor sees it from outside",
        )
    return ok(text)


async def _look_up(name: str) -> list[str]:
    with trio.move_on_after(PATIENCE):
        try:
            found = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError:
            return []
        return list(dict.fromkeys(str(address[0]) for *_, address in found))
    return []


def _is_ours(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Firewall:
    argv: tuple[str, ...]  # what is asked and read here
    closed: Callable[[str, Sequence[int]], Iterable[int]]
    shown_by: str  # what shows the same to a person


_FIREWALLS: Final = (
    _Firewall(("nft", "-j", "list", "ruleset"), nft_closed, "nft list ruleset"),
    _Firewall(("iptables", "-S"), iptables_closed, "iptables -S"),
)


async def check_firewall(context: Context) -> Finding:
    """Whether it lets agents and visitors in."""
    beyond = "a provider's firewall is seen from elsewhere only: relay-agent doctor"
    present = [one for one in _FIREWALLS if _program(one.argv[0])]
    if not present:
        return ok(f"neither nft nor iptables is here, so no firewall of its own; {beyond}")
    if os.geteuid() != 0:
        return note("only root may read the firewall's rules", "sudo relay-server doctor")
    ports = [*context.link_ports, *context.public_ports]
    shut: dict[int, str] = {}  # the command that shows why
    for one in present:
        said = await output(*one.argv)
        for port in one.closed(said or "", ports):
            shut.setdefault(port, one.shown_by)
    if shut:
        shown = ", ".join(map(str, shut))
        return note(
            f"what comes is dropped by default, and no rule names port {shown}",
            f"open them, such as by: ufw allow {next(iter(shut))}/tcp;"
            f" see: {' and '.join(dict.fromkeys(shut.values()))}",
        )
    return ok(f"no rule of this machine's own is in the way, as far as can be seen; {beyond}")


async def accepts(address: HostPort) -> bool:
    host = {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(address.host, address.host)  # noqa: S104
    with trio.move_on_after(PATIENCE):
        try:
            await (await trio.open_tcp_stream(host, address.port)).aclose()
        except OSError:
            return False
        return True
    return False


async def output(*argv: str) -> str | None:
    """What a program of the system says; None if it cannot say it in time."""
    program = _program(argv[0])
    if program is None:
        return None
    with trio.move_on_after(PATIENCE):
        try:
            done = await trio.run_process(
                [program, *argv[1:]],
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        except OSError:
            return None
        return done.stdout.decode(errors="replace") if done.returncode == 0 else None
    return None


def _program(name: str) -> str | None:
    # Those of root are not on everybody's PATH.
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
