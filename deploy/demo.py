"""The main job, on this machine alone: relay, agent, and a real ssh through the public port.

Run it with `make demo`. It works in a temporary folder, with keys made for the occasion; nobody's
~/.ssh is written to. From a terminal it stays up until Ctrl-C, otherwise it ends by itself; either
way it leaves no process and no file behind. The exit status tells whether ssh got through.
"""

from __future__ import annotations

import contextlib
import io
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

LOOPBACK = "127.0.0.1"
# For what takes a second or two on a quiet machine.
LIMIT = 30.0
# What each process is promised to need for leaving, and a margin.
LEAVE = 5.0

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
INTERACTIVE = sys.stdin.isatty() and sys.stdout.isatty()


class DemoFailed(Exception):  # noqa: N818 - an outcome, not a defect
    """What went wrong, for the reader of the demo."""


# --- Telling -------------------------------------------------------------------------------------

_voice = threading.Lock()


def say(text: str = "", style: str = "") -> None:
    with _voice:
        sys.stdout.write(f"\033[{style}m{text}\033[0m\n" if COLOUR and style else f"{text}\n")
        sys.stdout.flush()


def step(number: int, title: str, explanation: str) -> None:
    say()
    say(f"{number}. {title}", style="1")
    say(textwrap.fill(explanation, 76, initial_indent="   ", subsequent_indent="   "))


class Stage:
    """The temporary folder, and everything that runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.relay_port = free_port(7022)
        self.public_port = free_port(11111)
        self.login_options: list[str] = []
        self.running: list[Background] = []

    def show(self, argv: Sequence[str], *, background: bool = False) -> None:
        """Print a command as one could type it, with the folder's name shortened."""
        lines, indent = [f"   $ {Path(argv[0]).name}"], "       "
        for word in argv[1:]:
            # An invitation is as long as three lines, and was shown in full once.
            shown = "relay1_…" if word.startswith("relay1_") else shlex.quote(word)
            shown = shown.replace(str(self.folder), "$DEMO")
            if len(lines[-1]) + len(shown) > 76:
                lines[-1] += " \\"
                lines.append(f"{indent}{shown}")
            else:
                lines[-1] += f" {shown}"
        say()
        say("\n".join(lines) + (" &" if background else ""), style="36")

    def run(self, argv: Sequence[str]) -> str:
        """Run a command to its end, show it and all it says, and return its standard output."""
        self.show(argv)
        with start(argv) as process:
            try:
                stdout, stderr = process.communicate(timeout=LIMIT)
            except BaseException:
                process.kill()
                raise
        for line in (stdout + stderr).splitlines():
            say(f"   {line}", style="32")
        if process.returncode != 0:
            raise DemoFailed(f"{Path(argv[0]).name} ended with status {process.returncode}")
        return stdout

    def keep_running(
        self,
        argv: Sequence[str],
        until: str,
        *,
        env: dict[str, str] | None = None,
        speaks: bool = True,
    ) -> None:
        """Start a process that stays, show what it says, and wait for a line like `until`."""
        self.show(argv, background=True)
        background = Background(argv, env=env, speaks=speaks)
        self.running.append(background)
        background.wait_for(until)

    def end(self) -> None:
        for background in self.running:
            background.speaks = False
        for background in reversed(self.running):
            background.end()


class Background:
    def __init__(self, argv: Sequence[str], *, env: dict[str, str] | None, speaks: bool) -> None:
        self.name = Path(argv[0]).name
        self._process = start(argv, env=env)
        self._lines: list[str] = []
        self._news = threading.Condition()
        self.speaks = speaks
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._process.stderr or io.StringIO() as stderr:
            for line in stderr:
                with self._news:
                    self._lines.append(line)
                    self._news.notify_all()
                if self.speaks:
                    say(f"   {self.name}: {line.rstrip()}", style="2")
        with self._news:
            self._news.notify_all()

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + LIMIT
        with self._news:
            while not any(re.search(pattern, line) for line in self._lines):
                if not self.alive:
                    raise DemoFailed(f"{self.name} ended with status {self._process.returncode}")
                # Looked at now and then, since the end of a process notifies nobody.
                self._news.wait(0.1)
                if time.monotonic() > deadline:
                    raise DemoFailed(f"{self.name} did not get ready within {LIMIT:g} s")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(LEAVE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # A login session of dropbear holds the pipe until it has seen its socket end.
        self._reader.join(1.0)


def start(argv: Sequence[str], *, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a process; an interruption meanwhile waits until we know what we have started."""
    held: list[int] = []
    handlers = {number: signal.getsignal(number) for number in INTERRUPTIONS}
    for number in handlers:
        signal.signal(number, lambda number, _: held.append(number))
    process = subprocess.Popen(  # noqa: S603 - all commands are written out below
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # Out of the terminal's group: Ctrl-C is for the demo, which then ends the others in order.
        start_new_session=True,
    )
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if held:
        with process:
            process.kill()
        raise KeyboardInterrupt
    return process


# --- The cast ------------------------------------------------------------------------------------


def program(name: str) -> str:
    """One of the system's programs, or of the environment this runs in."""
    here = str(Path(sys.executable).parent)
    path = shutil.which(name, path=f"{here}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise DemoFailed(f"{name} is not installed; `make demo` sees to that")
    return path


def free_port(preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return int(probe.getsockname()[1])
    raise DemoFailed("this machine has no free port")


def answers_as_ssh(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2) as caller:
            return caller.recv(4) == b"SSH-"
    except OSError:
        return False


def let_in_already(stage: Stage) -> bool:
    """Whether the machine's own SSH server lets this user in with the keys at hand."""
    known_hosts = f"-oUserKnownHostsFile={stage.folder / 'known_hosts'}"
    options = ["-F", "none", "-oBatchMode=yes", "-oStrictHostKeyChecking=accept-new", known_hosts]
    argv = [program("ssh"), *options, f"{stage.user}@{LOOPBACK}", "true"]
    with start(argv) as process:
        try:
            process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.returncode != 0:
        return False
    # Under the public port's name it is a stranger to the list of known hosts, so once more.
    stage.login_options = ["-oStrictHostKeyChecking=accept-new", known_hosts]
    return True


def make_keys(stage: Stage) -> None:
    login_key, host_key = stage.folder / "login_key", stage.folder / "host_key"
    ssh_keygen = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(login_key)]
    dropbearkey = [program("dropbearkey"), "-t", "ed25519", "-f", str(host_key)]
    said = []
    for argv in (ssh_keygen, dropbearkey):
        with start(argv) as process:
            stdout, stderr = process.communicate(timeout=LIMIT)
        if process.returncode != 0:
            raise DemoFailed(f"{Path(argv[0]).name} failed: {stderr.strip()}")
        said += stdout.splitlines()
    public_host_key = next(line for line in said if line.startswith("ssh-ed25519"))
    known_hosts = stage.folder / "known_hosts"
    known_hosts.write_text(f"[{LOOPBACK}]:{stage.public_port} {public_host_key}\n")
    home = stage.folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    authorized_keys = home / ".ssh" / "authorized_keys"
    authorized_keys.write_text(login_key.with_suffix(".pub").read_text())
    authorized_keys.chmod(0o600)
    stage.login_options = ["-i", str(login_key), f"-oUserKnownHostsFile={known_hosts}"]


def start_dropbear(stage: Stage) -> int:
    """A dropbear for which this user lives in the temporary folder; its port."""
    make_keys(stage)
    port = free_port(2222)
    others = [
        line
        for line in Path("/etc/passwd").read_text().splitlines()
        if not line.startswith(f"{stage.user}:")
    ]
    me = f"{stage.user}:*:{os.getuid()}:{os.getgid()}::{stage.folder / 'home'}:/bin/sh"
    passwd = stage.folder / "passwd"
    passwd.write_text("\n".join([me, *others, ""]))
    # Without the group "tty", to which only root may give a terminal where /dev/pts is mounted
    # without it, as containers do.
    group = stage.folder / "group"
    groups = Path("/etc/group").read_text().splitlines(keepends=True)
    group.write_text("".join(line for line in groups if not line.startswith("tty:")))
    env = os.environ | {
        # dropbear looks for keys in the home that the passwd file names, so it gets its own.
        "LD_PRELOAD": "libnss_wrapper.so",
        "NSS_WRAPPER_PASSWD": str(passwd),
        "NSS_WRAPPER_GROUP": str(group),
    }
    argv = [program("dropbear"), "-F", "-E", "-s", "-r", str(stage.folder / "host_key")]
    argv += ["-p", f"{LOOPBACK}:{port}", "-P", str(stage.folder / "dropbear.pid")]
    # Its log would tell of every look that is taken at its banner.
    stage.keep_running(argv, "Not backgrounding", env=env, speaks=False)
    deadline = time.monotonic() + LIMIT
    while not answers_as_ssh(port):
        if time.monotonic() > deadline:
            raise DemoFailed(f"dropbear does not answer on port {port}")
        time.sleep(0.05)
    return port


# --- The play ------------------------------------------------------------------------------------


def play(stage: Stage) -> list[str]:
    """Everything up to the login; the ssh command that works."""
    say("A router behind NAT, a relay on a VPS, a laptop: all three on this machine.", style="1")
    say(f"DEMO={stage.folder}  (a temporary folder; it goes when the demo ends)")

    join = [program("relay-agent"), "join"]
    if answers_as_ssh(22) and let_in_already(stage):
        step(1, "The router's SSH server", "It is here already, on port 22, and lets you in.")
    else:
        step(
            1,
            "The router's SSH server",
            "None on port 22 that would let this demo in, so here is a dropbear as routers run it,"
            " with keys made for the occasion.",
        )
        join += ["--service", f"ssh={LOOPBACK}:{start_dropbear(stage)}"]

    step(
        2,
        "The relay",
        "On a real VPS plain `relay-server run --host YOUR.NAME` does it. Agents dial in on one"
        f" port ({stage.relay_port}); each gets a public port of its own.",
    )
    relay, relay_state = program("relay-server"), ["--state-dir", str(stage.folder / "relay")]
    address = f"{LOOPBACK}:{stage.relay_port}"
    run_relay = [relay, "run", "--listen", address, "--host", address, "--bind", LOOPBACK]
    stage.keep_running([*run_relay, *relay_state], r"\blistening\b")

    step(
        3,
        "The invitation",
        "One line for the router: where the relay is, how to recognise it, and a single-use token.",
    )
    public_port = str(stage.public_port)
    invitation = stage.run([relay, "invite", "home", "--port", public_port, *relay_state]).strip()

    step(
        4,
        "The agent, on the router",
        "It enrols, goes through the public port to try the whole way, and then stays attached."
        " It dials out and listens nowhere.",
    )
    agent_state = ["--state-dir", str(stage.folder / "agent")]
    stage.run([*join, invitation, *agent_state])
    stage.keep_running([program("relay-agent"), "run", *agent_state], r"\bservice-up\b")

    step(5, "A stock ssh, from anywhere", "It knows nothing of the relay but a name and a port.")
    options = ["-F", "none", "-oBatchMode=yes", *stage.login_options]
    ssh = [program("ssh"), "-p", public_port, *options, f"{stage.user}@{LOOPBACK}"]
    answer = f"Hello from behind the relay, {stage.user}"
    said = stage.run([*ssh, f'echo "{answer}"; uname -snrm'])
    if answer not in said:
        raise DemoFailed("ssh ended well but did not print what it was told to")
    return ssh


def stay(stage: Stage, ssh: Sequence[str]) -> NoReturn:
    # Noted and not raised: an exception in the midst of looking after a process would leave that
    # process's lock taken, and the cleaning up would wait for it.
    asked: list[int] = []
    for number in INTERRUPTIONS:
        signal.signal(number, lambda number, _: asked.append(number))
    say()
    say("It works, and stays up until you press Ctrl-C.", style="1")
    say("Try it from another terminal; what relay and agent log of it is shown here:")
    say()
    say(f"   {shlex.join(['ssh', *(part for part in ssh[1:] if 'BatchMode' not in part)])}")
    say()
    while not asked:
        time.sleep(0.2)
        for background in stage.running:
            if not background.alive:
                raise DemoFailed(f"{background.name} has ended")
    raise KeyboardInterrupt


@contextlib.contextmanager
def stage_in_a_temporary_folder() -> Iterator[Stage]:
    stage = Stage(Path(tempfile.mkdtemp(prefix="ssh-relay-demo-")))
    try:
        yield stage
    finally:
        # A second Ctrl-C must not stop the cleaning up half-way; it takes seconds at most.
        for number in INTERRUPTIONS:
            signal.signal(number, signal.SIG_IGN)
        stage.end()
        shutil.rmtree(stage.folder, ignore_errors=True)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    worked = False
    try:
        with stage_in_a_temporary_folder() as stage:
            ssh = play(stage)
            worked = True
            if INTERACTIVE:
                stay(stage, ssh)
    except KeyboardInterrupt:
        say()
        if not worked:
            say("Interrupted; everything is cleaned up.")
            return 130  # 128 + SIGINT, as shells have it
    except (DemoFailed, subprocess.TimeoutExpired) as exc:
        say()
        say(f"The demo failed: {exc}", style="1;31")
        return 1
    say()
    say("It worked. Processes, keys and folder are gone again.", style="1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
