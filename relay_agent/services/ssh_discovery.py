"""How the agent finds the SSH server of its machine.

A wrong guess would be saved and tried for ever, so a candidate counts only once it has shown an SSH
banner. On OpenWrt the configuration names the port; elsewhere it nearly always is 22.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from protocol.process.address import HostPort, parse_port
from relay_agent.net.dial import DialFailed, dial

# A local server answers in milliseconds; a router that swaps may take longer.
BANNER_TIMEOUT: Final = 2.0
# Lines may precede the banner (RFC 4253, section 4.2), a legal notice perhaps; not a web page.
MAX_PREAMBLE: Final = 8192
# `uci` and `ubus` answer in milliseconds, unless ubusd hangs.
COMMAND_TIMEOUT: Final = 2.0
SSHD_CONFIG: Final = Path("/etc/ssh/sshd_config")


class NoBanner(Exception):  # noqa: N818 - an outcome, not a defect
    """No SSH server introduced itself at that address; the text says what was seen instead."""


class NoSshServer(Exception):  # noqa: N818 - an outcome, not a defect
    """No SSH server was found on this machine; the text is one line that lists what was tried."""


async def read_banner(host: str, port: int, deadline: float, *, greeting: bytes = b"") -> str:
    """The banner line (`SSH-2.0-…`) of the server at `host`; `deadline` is on trio's clock.

    `greeting` is sent first. Raises `NoBanner`. The text is safe to show, whatever the server has
    put into it.
    """
    address = HostPort(host, port)
    try:
        sock = await dial([address], deadline=deadline)
    except DialFailed as failed:
        raise NoBanner(str(failed)) from None
    received = b""
    with sock, trio.CancelScope(deadline=deadline):
        try:
            if greeting:
                await sock.send(greeting)
            while len(received) < MAX_PREAMBLE:
                data = await sock.recv(MAX_PREAMBLE - len(received))
                if not data:
                    raise NoBanner(f"{address}: closed without an SSH banner")
                received += data
                banner = _find_banner(received)
                if banner is not None:
                    return banner
        except OSError as error:
            raise NoBanner(f"{address}: {error.strerror or error}") from None
        raise NoBanner(f"{address}: answers, but not as an SSH server")
    raise NoBanner(f"{address}: accepts, but shows no SSH banner in time")


def _find_banner(received: bytes) -> str | None:
    *whole_lines, _ = received.split(b"\n")
    for line in whole_lines:
        if line.startswith(b"SSH-"):
            text = line.rstrip(b"\r").decode("ascii", "replace")
            return "".join(letter if letter.isprintable() else "?" for letter in text)
    return None


async def find_ssh_server(*, sshd_config: Path = SSHD_CONFIG) -> HostPort:
    """Where the SSH server of this machine listens. Raises `NoSshServer`."""
    tried = []
    for candidate in await _candidates(sshd_config):
        deadline = trio.current_time() + BANNER_TIMEOUT
        try:
            await read_banner(candidate.host, candidate.port, deadline)
        except NoBanner as reason:
            tried.append(str(reason))
        else:
            return candidate
    raise NoSshServer(
        f"no SSH server found on this machine (tried {'; '.join(tried)}); "
        "start one or name it with --service ssh=HOST:PORT"
    )


async def _candidates(sshd_config: Path) -> Sequence[HostPort]:
    found = []
    for section in dropbear_sections(await _output("uci", "-q", "show", "dropbear")):
        # Loopback first: it stays when the interface's address changes. dropbear does not listen
        # there if the section names an interface.
        found += _loopback(section.port)
        if section.interface:
            status = await _output(
                "ubus", "call", f"network.interface.{section.interface}", "status"
            )
            found += [HostPort(address, section.port) for address in interface_addresses(status)]
    found += _loopback(22)
    for path in (sshd_config, *sorted(sshd_config.with_name("sshd_config.d").glob("*.conf"))):
        for port in sshd_ports(_text(path)):
            found += _loopback(port)
    found += _loopback(2222)  # where a second SSH server usually goes
    return tuple(dict.fromkeys(found))


def _loopback(port: int) -> list[HostPort]:
    return [HostPort("127.0.0.1", port), HostPort("::1", port)]


@dataclass(frozen=True, slots=True)
class DropbearSection:
    """One enabled dropbear of OpenWrt's configuration; `interface` is "" for all."""

    port: int
    interface: str


def dropbear_sections(uci_show: str) -> list[DropbearSection]:
    """Read the output of `uci show dropbear`: lines `dropbear.SECTION[.OPTION]='VALUE'`."""
    sections: dict[str, dict[str, str]] = {}
    for line in uci_show.splitlines():
        key, _, value = line.partition("=")
        match key.split("."):
            case ["dropbear", section]:
                sections[section] = {}
            case ["dropbear", section, option]:
                sections.setdefault(section, {})[option] = value.strip("'")
            case _:  # of another package
                pass
    enabled = []
    for options in sections.values():
        if options.get("enable", "1") in {"0", "off", "false", "no", "disabled"}:
            continue
        try:
            port = parse_port(options.get("Port", "22"))
        except ValueError:  # dropbear's own start script reports that
            continue
        interface = options.get("DirectInterface") or options.get("Interface", "")
        enabled.append(DropbearSection(port, interface))
    return enabled


def interface_addresses(ubus_status: str) -> list[str]:
    """The IPv4 addresses in the output of `ubus call network.interface.NAME status`."""
    import json

    try:
        return [str(entry["address"]) for entry in json.loads(ubus_status)["ipv4-address"]]
    except (ValueError, KeyError, TypeError):
        return []  # the interface is down or unknown; the other candidates remain


def sshd_ports(config: str) -> list[int]:
    """The ports that an sshd_config names by `Port`."""
    ports = []
    for line in config.splitlines():
        match = _SSHD_PORT.match(line)
        if match and 1 <= int(match[1]) <= 65535:
            ports.append(int(match[1]))
    return ports


# sshd takes keywords in any case, and `=` for the space.
_SSHD_PORT: Final = re.compile(r"\s*port[\s=]+\"?(\d{1,5})\"?\s*(?:#|$)", re.IGNORECASE)


async def _output(*command: str) -> str:
    """What `command` prints; nothing if it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:  # not OpenWrt
        return ""
    run = partial(trio.run_process, capture_stdout=True, capture_stderr=True, check=False)
    with trio.move_on_after(COMMAND_TIMEOUT):
        try:
            return (await run(command)).stdout.decode("utf-8", "replace")
        except OSError:  # a file of that name, but not for this machine
            pass
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
