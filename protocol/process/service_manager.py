"""Which service manager of this machine starts a program: OpenWrt's procd, systemd, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from protocol.process.state import Program

SYSTEMD: Final = Path("/run/systemd/system")  # exists while systemd is running: sd_booted(3)
INIT_SCRIPTS: Final = Path("/etc/init.d")
UNITS: Final = Path("/etc/systemd/system")


def has_systemd() -> bool:
    return SYSTEMD.is_dir()


def how_to_start(program: Program) -> str:
    """The command that starts `program` here, or starts it anew if it is running."""
    if (INIT_SCRIPTS / program).exists():
        return f"service {program} restart"
    if has_systemd() and (UNITS / f"{program}.service").exists():
        return f"sudo systemctl restart {program}"
    return f"{program} run"
