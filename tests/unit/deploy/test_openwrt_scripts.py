"""What OpenWrt's shell runs, in that shell (busybox), and what it tells procd.

The functions of rc.common, procd and UCI are stubs that write down how they were called. What
validate_data prints was copied from the real one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.repository import OPENWRT

FILES = OPENWRT / "files"
INIT = FILES / "etc/init.d/relay-agent"
HOTPLUG = FILES / "etc/hotplug.d/iface/90-relay-agent"
WRAPPER = FILES / "usr/bin/relay-agent"
ARGUMENTS = "var/run/relay-agent.arguments"
SCRIPTS = [INIT, HOTPLUG, WRAPPER, *(OPENWRT / name for name in ("postinst", "prerm", "postrm"))]

STUBS = r"""
record() { { printf '%s' "$1"; shift; [ $# = 0 ] || printf ' <%s>' "$@"; echo; } >>"$RECORD"; }
for name in extra_command procd_open_instance procd_set_param procd_append_param \
    procd_close_instance procd_add_reload_trigger procd_send_signal config_load logger \
    default_postinst default_prerm
do
    eval "$name() { record $name \"\$@\"; }"
done
procd_add_validation() { "$@"; }
uci_load_validate() {
    local section="$3" function="$4"
    record uci_load_validate "$@"
    [ -n "$function" ] || return 0
    eval "$VALIDATED"
    "$function" "$section" "$RESULT"
}
config_list_foreach() {
    echo "$SERVICES" | while read -r item; do
        [ -z "$item" ] || "$3" "$item"
    done
}
"""
DEFAULTS = "enabled=1; log_level='info'; unset -v service; "


class Ash:
    """Busybox's shell with the stubs, in a folder that stands for the router's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record = root / "record"
        self.environment = {
            "PATH": f"{root}/usr/bin:{os.environ['PATH']}",
            "RECORD": str(self.record),
            "IPKG_INSTROOT": str(root),
            "VALIDATED": DEFAULTS,
            "RESULT": "0",
            "SERVICES": "",
        }
        (root / "lib").mkdir()
        (root / "lib/functions.sh").write_text(STUBS)
        (root / "usr/bin").mkdir(parents=True)
        (root / "etc/init.d").mkdir(parents=True)
        (root / "var/run").mkdir(parents=True)
        (root / "etc/relay-agent").mkdir(parents=True)

    def run(self, code: str, *arguments: str, **environment: str) -> list[str]:
        """The calls that `code` made."""
        self.record.write_text("")
        done = subprocess.run(
            ["busybox", "ash", "-c", code, "sh", *arguments],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stderr == ""
        assert done.returncode == 0
        self.output = done.stdout
        return self.record.read_text().splitlines()

    def script(self, file: Path, *arguments: str, **environment: str) -> list[str]:
        """The same for a file, with the root for `/` where it calls other scripts."""
        code = file.read_text().replace("/etc/init.d/", f"{self.root}/etc/init.d/")
        code = code.replace("$IPKG_INSTROOT/lib/", f"{self.root}/lib/").replace("sleep 5", ":")
        return self.run(code, *arguments, **environment)

    def init(self, action: str, **environment: str) -> list[str]:
        stubs = shlex.quote(str(self.root / "lib/functions.sh"))
        calls = self.run(f". {stubs}; . {shlex.quote(str(INIT))}; {action}", **environment)
        assert calls.pop(0).startswith("extra_command <redial>")
        return calls

    def program(self, path: str, code: str) -> None:
        file = self.root / path
        file.write_text(f"#!/bin/sh\n{code}\n")
        file.chmod(0o755)


@pytest.fixture
def ash(tmp_path: Path) -> Ash:
    return Ash(tmp_path)


@pytest.fixture
def joined(ash: Ash) -> Ash:
    (ash.root / "etc/relay-agent/enrolment.toml").write_text("name = 'home'\n")
    return ash


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_shellcheck_has_no_complaint(file: Path) -> None:
    command = ["shellcheck", "-s", "ash", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


# --- The init script


def test_what_procd_is_told(joined: Ash) -> None:
    state, arguments = joined.root / "etc/relay-agent", joined.root / ARGUMENTS
    validate, *calls = joined.init("start_service")[1:]
    assert validate.startswith("uci_load_validate <relay-agent> <agent> <main> <start_agent>")
    assert calls == [
        "procd_open_instance",
        f"procd_set_param <command> </usr/bin/relay-agent> <run> <@{arguments}>",
        f"procd_set_param <file> <{arguments}> <{state}/enrolment.toml> <{state}/agent.toml>",
        "procd_set_param <reload_signal> <HUP>",
        "procd_set_param <respawn> <60> <5> <0>",
        "procd_set_param <term_timeout> <10>",
        "procd_set_param <stdout> <1>",
        "procd_set_param <stderr> <1>",
        "procd_close_instance",
    ]
    assert arguments.read_text() == "--log-level\ninfo\n"


def test_services_and_log_level_go_into_a_file_that_can_be_read_again(joined: Ash) -> None:
    joined.init(
        "start_service",
        VALIDATED="enabled=1; log_level='debug'; service='ssh=h:22'\\ 'web=h:80@5'; ",
        SERVICES="ssh=h:22\nweb=h:80@5",
    )
    assert (joined.root / ARGUMENTS).read_text().splitlines() == [
        "--log-level",
        "debug",
        "--service",
        "ssh=h:22",
        "--service",
        "web=h:80@5",
    ]
    assert [file.name for file in (joined.root / ARGUMENTS).parent.iterdir()] == [
        "relay-agent.arguments"
    ]


def test_the_options_are_validated(joined: Ash) -> None:
    (call,) = (x for x in joined.init("service_triggers") if x.startswith("uci_load_validate"))
    assert call.endswith(
        '<enabled:bool:1> <log_level:or("debug", "info", "warning", "error"):info>'
        " <service:list(string)>"
    )


def test_a_changed_configuration_is_a_reload(joined: Ash) -> None:
    assert "procd_add_reload_trigger <relay-agent>" in joined.init("service_triggers")


def test_a_wrong_value_is_told_and_locks_nobody_out(joined: Ash) -> None:
    calls = joined.init(
        "start_service", VALIDATED="unset -v enabled; unset -v log_level; ", RESULT="255"
    )
    assert any(call.startswith("logger") and "not valid" in call for call in calls)
    assert (joined.root / ARGUMENTS).read_text() == "--log-level\ninfo\n"


@pytest.mark.parametrize(
    ("validated", "said"),
    [(DEFAULTS, "not joined yet; run: relay-agent join"), ("enabled=0; log_level=info; ", "is 0")],
)
def test_what_it_does_not_start_it_says_why(ash: Ash, validated: str, said: str) -> None:
    calls = ash.init("start_service", VALIDATED=validated)
    assert not any("procd" in call for call in calls)
    assert calls[-1].startswith("logger <-t> <relay-agent> <-p> <daemon.notice>")
    assert said in calls[-1]


def test_redial_is_a_signal_by_name(joined: Ash) -> None:
    """SIGUSR1 is 10 on most machines and 16 on MIPS."""
    assert joined.init("redial") == ["procd_send_signal <relay-agent> <*> <USR1>"]


# --- Hotplug


@pytest.mark.parametrize(
    ("action", "interface", "called"),
    [
        ("ifup", "wan", True),
        ("ifup", "wwan", True),
        ("ifup", "loopback", False),
        ("ifdown", "wan", False),
        ("ifupdate", "wan", False),
    ],
)
def test_an_interface_that_comes_up_is_a_redial(
    ash: Ash, action: str, interface: str, called: bool
) -> None:
    ash.program("etc/init.d/relay-agent", 'echo "init $*" >>"$RECORD"; exit 1')
    calls = ash.script(HOTPLUG, ACTION=action, INTERFACE=interface)
    assert calls == (["init redial"] if called else [])


# --- The command


def test_the_command_runs_python_isolated_and_deaf_to_signals(ash: Ash) -> None:
    command = ash.root / "usr/bin/relay-agent"
    shutil.copy(WRAPPER, command)
    ash.program("usr/bin/python3", 'kill -USR1 $$; kill -HUP $$; echo "$LD_LIBRARY_PATH" "$@"')
    link = ash.root / "usr/bin/link"
    link.symlink_to(command)  # as one makes in /usr/bin for a package in another folder
    ash.run('busybox ash "$@"', str(link), "run", "--service", "a b=h:1")
    lib = f"{ash.root}/usr/lib"
    assert ash.output == f"{lib}:{ash.root}/lib -I {lib}/relay-agent run --service a b=h:1\n"


# --- Installing, upgrading and removing


@pytest.fixture
def installed(ash: Ash) -> Ash:
    """A module, Python, and an init script that writes down what it is asked."""
    lib = ash.root / "usr/lib/relay-agent/package"
    lib.mkdir(parents=True)
    (lib / "module.py").write_text("x = 1\n")
    (ash.root / "usr/bin/python3").symlink_to(sys.executable)
    ash.program("etc/init.d/relay-agent", 'echo "init $*" >>"$RECORD"')
    return ash


def compiled(ash: Ash) -> Sequence[Path]:
    return list((ash.root / "usr/lib").rglob("*.pyc"))


def on_router(ash: Ash, **environment: str) -> dict[str, str]:
    return {"IPKG_INSTROOT": "", "PKG_ROOT": f"{ash.root}/", **environment}


def test_installing_compiles_and_starts(installed: Ash) -> None:
    calls = installed.script(OPENWRT / "postinst", "configure", **on_router(installed))
    assert calls == ["default_postinst <sh> <configure>"]
    assert len(compiled(installed)) == 1


def test_files_that_are_newer_but_look_the_same_are_compiled_again(installed: Ash) -> None:
    """All builds may have the same time, and a file its old size."""
    module = installed.root / "usr/lib/relay-agent/package/module.py"
    for code in ("x = 1\n", "x = 2\n"):
        module.write_text(code)
        os.utime(module, (0, 0))
        installed.script(OPENWRT / "postinst", **on_router(installed))
    load = f"import sys; sys.path[:0] = [{str(module.parent)!r}]; import module; print(module.x)"
    done = subprocess.run([sys.executable, "-I", "-c", load], capture_output=True, check=True)
    assert done.stdout == b"2\n"


def test_without_room_for_the_compiled_files_it_is_installed_all_the_same(installed: Ash) -> None:
    (installed.root / "usr/bin/python3").unlink()
    installed.program("usr/bin/python3", "exit 1")
    assert installed.script(OPENWRT / "postinst", **on_router(installed)) == [
        "default_postinst <sh>"
    ]
    assert installed.output.startswith("relay-agent: not compiled")


def test_an_upgrade_restarts_it_only_at_the_end(installed: Ash) -> None:
    """Over a session that the agent itself carries: it must not be cut in the middle."""
    upgrade = on_router(installed, PKG_UPGRADE="1")
    assert installed.script(OPENWRT / "prerm", "upgrade", "0.2.0", **upgrade) == []
    installed.script(OPENWRT / "postinst", "configure", **upgrade)
    deadline = time.monotonic() + 30
    while "init restart" not in (said := installed.record.read_text()):
        assert time.monotonic() < deadline, said
        time.sleep(0.01)
    assert said.splitlines() == ["default_postinst <sh> <configure>", "init restart"]


def test_the_restart_after_an_upgrade_outlives_the_session(installed: Ash) -> None:
    """When ssh dies, the shell and all it has started get SIGHUP."""
    script = (OPENWRT / "postinst").read_text()
    body = script[script.index("\t(\n") : script.index(") </dev/null")] + ")"
    body = body.replace("sleep 5", f"kill -{signal.SIGHUP.value} $$; kill -HUP 0").replace(
        "/etc/init.d/", f"{installed.root}/etc/init.d/"
    )
    installed.record.write_text("")
    subprocess.run(
        ["busybox", "ash", "-c", f"{body} &\nwait"],
        env=installed.environment,
        start_new_session=True,
        check=False,
        timeout=60,
    )
    deadline = time.monotonic() + 30
    while installed.record.read_text() != "init restart\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_removing_stops_it_and_leaves_nothing(installed: Ash) -> None:
    installed.script(OPENWRT / "postinst", **on_router(installed))
    assert installed.script(OPENWRT / "prerm", "remove", **on_router(installed)) == [
        "default_prerm <sh> <remove>"
    ]
    assert compiled(installed) == []
    for module in (installed.root / "usr/lib").rglob("*.py"):
        module.unlink()
    installed.script(OPENWRT / "postrm", "upgrade", **on_router(installed))
    assert (installed.root / "usr/lib/relay-agent").exists()
    installed.script(OPENWRT / "postrm", "remove", **on_router(installed))
    assert not (installed.root / "usr/lib/relay-agent").exists()


def test_nothing_is_run_while_an_image_is_built(installed: Ash) -> None:
    """Python in the image is for another machine."""
    installed.script(OPENWRT / "postinst", PKG_UPGRADE="1")
    assert compiled(installed) == []
    assert installed.script(OPENWRT / "postinst", IPKG_NO_SCRIPT="1") == []
