"""The main job, on this machine alone: relay, agent, and a real ssh through the public port.

Run it with `make demo`. It works in a temporary folder, with keys made for the occasion; nobody's
~/.ssh is written to. From a terminal it stays up until Ctrl-C, otherwise it ends by itself; either
way it leaves no process and no file behind. The exit status tells whether ssh got through.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

# Run as a script, it does not know where the tests are whose means it uses.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.ports import LOOPBACK, free_port, listens
from tests.support.processes import ProcessUnderTest
from tests.support.ssh import Dropbear, Login

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
        self.relay_port = port_like(7022)
        self.public_port = port_like(11111)
        self.login_options: list[str] = []
        self.running: list[ProcessUnderTest] = []
        self.ending = False

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
            status = process.wait()
        for line in process.stdout.splitlines() + process.log:
            say(f"   {line}", style="32")
        if status != 0:
            raise DemoFailed(f"{Path(argv[0]).name} ended with status {status}")
        return process.stdout

    def keep_running(self, argv: Sequence[str], until: str) -> None:
        """Start a process that stays, show what it says, and wait for a line like `until`."""
        self.show(argv, background=True)
        process = start(argv, self._show_line)
        self.running.append(process)
        process.wait_for_line(until)

    def _show_line(self, argv: Sequence[str], line: str) -> None:
        if not self.ending:
            say(f"   {Path(argv[0]).name}: {line}", style="2")

    def end(self) -> None:
        self.ending = True
        for process in reversed(self.running):
            process.stop()


def port_like(preferred: int) -> int:
    """`preferred`, which reads better, unless somebody has it."""
    return free_port() if listens(preferred) else preferred


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """An interruption in the body waits until we know what we have started."""
    held: list[int] = []
    handlers = {number: signal.getsignal(number) for number in INTERRUPTIONS}
    for number in handlers:
        signal.signal(number, lambda number, _: held.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if held:
        raise KeyboardInterrupt


def start(
    argv: Sequence[str], heard: Callable[[Sequence[str], str], None] | None = None
) -> ProcessUnderTest:
    process: ProcessUnderTest | None = None
    try:
        with uninterrupted():
            # Out of the terminal's group: Ctrl-C is for the demo, which ends the others in order.
            process = ProcessUnderTest(argv, environment=os.environ, heard=heard, own_session=True)
    except KeyboardInterrupt:
        if process is not None:
            process.kill()
        raise
    return process


# --- The cast ------------------------------------------------------------------------------------


def program(name: str) -> str:
    """One of the system's programs, or of the environment this runs in."""
    here = str(Path(sys.executable).parent)
    path = shutil.which(name, path=f"{here}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise DemoFailed(f"{name} is not installed; `make demo` sees to that")
    return path


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
    with start([program("ssh"), *options, f"{stage.user}@{LOOPBACK}", "true"]) as ssh:
        try:
            status = ssh.wait()
        except AssertionError:  # it hangs
            return False
    if status != 0:
        return False
    # Under the public port's name it is a stranger to the list of known hosts, so once more.
    stage.login_options = ["-oStrictHostKeyChecking=accept-new", known_hosts]
    return True


def start_dropbear(stage: Stage) -> int:
    """A dropbear for which this user lives in the temporary folder; its port."""
    for name in ("ssh-keygen", "dropbearkey", "dropbear"):
        program(name)
    with uninterrupted():
        login = Login(stage.folder / "login")
        server = Dropbear(stage.folder / "dropbear", login)
        stage.running.append(server.process)
    stage.show(server.process.argv, background=True)
    stage.login_options = ["-i", str(login.key), f"-oUserKnownHostsFile={login.known_hosts}"]
    return server.port


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
        for process in stage.running:
            if not process.running:
                raise DemoFailed(f"{Path(process.argv[0]).name} has ended")
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
    except (DemoFailed, AssertionError) as exc:  # the latter of a process that did not follow
        say()
        say(f"The demo failed: {exc}", style="1;31")
        return 1
    say()
    say("It worked. Processes, keys and folder are gone again.", style="1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
