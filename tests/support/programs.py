"""The installed relay-server and relay-agent, each with a state folder of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.ports import LOOPBACK, free_port
from tests.support.processes import ProcessUnderTest, plain_environment, run, script
from tests.support.service_manager import Manager
from tests.support.waiting import LIMIT, LONG_LIMIT, eventually


class Relay:
    """relay-server with a state folder, a port and a life of its own."""

    def __init__(self, folder: Path, *, bind: str | None = LOOPBACK, config: str = "") -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.state = folder / "state"
        self.port = free_port()
        self.bind = bind
        self.config = folder / "relay.toml"
        self.config.write_text(config)
        self.environment = plain_environment(folder)
        self.manager: Manager | None = None  # that the relay is a service of
        self.command = [script("relay-server")]
        self._process: ProcessUnderTest | None = None

    @property
    def process(self) -> ProcessUnderTest:
        assert self._process is not None, "the relay was not started"
        return self._process

    def start(self, *, limit: float = LIMIT) -> ProcessUnderTest:
        argv = [*self.command, "run", "--state-dir", str(self.state)]
        argv += ["--config", str(self.config), "--listen", f"{LOOPBACK}:{self.port}"]
        argv += ["--host", f"{LOOPBACK}:{self.port}"]
        if self.bind is not None:
            argv += ["--bind", self.bind]
        environment, descriptors = self.environment, list[int]()
        if self.manager is not None:
            argv = self.manager.launch(argv)
            environment = environment | {"NOTIFY_SOCKET": self.manager.address}
            descriptors = [descriptor for _, descriptor in self.manager.store]
        self._process = ProcessUnderTest(argv, environment=environment, descriptors=descriptors)
        process = self._process
        # Its port may listen before: of a process before it, whose socket was kept.
        process.wait_for_line(r"[ \"]listening[ \"]", limit=limit)
        return process

    def start_service(self) -> None:
        """As `systemctl start` does, which returns when the service says that it is ready."""
        manager = self.manager
        assert manager is not None
        self.start()
        eventually(lambda: "READY=1" in manager.obey(), what="the relay is ready")

    def cli(
        self, *arguments: str, before_exec: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        argv = [script("relay-server"), *arguments, "--state-dir", str(self.state)]
        return run(argv, environment=self.environment, before_exec=before_exec)

    def invite(self, name: str, *ports: int, hosts: Sequence[str] = ()) -> str:
        arguments = ["invite", name]
        for port in ports:
            arguments += ["--port", str(port)]
        for host in hosts:
            arguments += ["--host", host]
        done = self.cli(*arguments)
        assert done.returncode == 0, done.stderr
        return only_line(done.stdout)

    def agents(self) -> dict[str, dict[str, Any]]:
        """What `agents --json` says, by name."""
        done = self.cli("agents", "--json")
        assert done.returncode == 0, done.stderr
        return {agent["name"]: agent for agent in json.loads(done.stdout)}

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()


class Agent:
    """relay-agent with a state folder and a life of its own.

    `command` is what to start it with, if not as it is installed here.
    """

    def __init__(self, folder: Path, command: Sequence[str] = ()) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.command = list(command) or [script("relay-agent")]
        self.state = folder / "state"
        self.environment = plain_environment(folder)
        self._process: ProcessUnderTest | None = None

    @property
    def process(self) -> ProcessUnderTest:
        assert self._process is not None, "the agent was not started"
        return self._process

    def try_join(
        self, invitation: str, *services: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        argv = [*self.command, "join"]
        argv += [invitation] if stdin is None else []
        for service in services:
            argv += ["--service", service]
        argv += ["--state-dir", str(self.state)]
        return run(argv, environment=self.environment, stdin=stdin, limit=LONG_LIMIT)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [script("relay-agent"), *arguments, "--state-dir", str(self.state)]
        return run(argv, environment=self.environment, limit=LONG_LIMIT)

    def join(self, invitation: str, *services: str) -> None:
        done = self.try_join(invitation, *services)
        assert done.returncode == 0, f"join failed:\n{done.stdout}{done.stderr}"

    def configure(self, toml: str) -> None:
        """Write the user's own options, which `run` reads from the state folder."""
        self.state.mkdir(mode=0o700, exist_ok=True)
        (self.state / "agent.toml").write_text(toml)

    def start(self, *ports: int) -> ProcessUnderTest:
        """Run the agent, and wait until the services at all of `ports` are up."""
        # At debug level also failures that repeat are told, which tests count.
        argv = [*self.command, "run", "--state-dir", str(self.state)]
        argv += ["--log-level", "debug"]
        self._process = ProcessUnderTest(argv, environment=self.environment)
        # A port may listen before, for it belongs to the agent and not to this process.
        for port in ports:
            self._process.wait_for_line(rf" service-up .*\bport={port}\b")
        return self._process

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()


def services(*entries: tuple[str, int, int]) -> str:
    """What agent.toml says for services of a name, a local port and a public one."""
    return "".join(
        f'[services.{name}]\ntarget = "{LOOPBACK}:{local}"\nport = {public}\n'
        for name, local, public in entries
    )


def only_line(text: str) -> str:
    """The one line `text` consists of."""
    assert text.endswith("\n"), f"not a whole line: {text!r}"
    assert text.count("\n") == 1, f"expected one line, got:\n{text}"
    assert text.strip(), "expected one line, got an empty one"
    return text[:-1]


def assert_fails(
    done: subprocess.CompletedProcess[str], *words: str, status: int | None = None
) -> None:
    """A command that could not do it says why in one last line that holds all of `words`."""
    assert done.returncode in ((1, 2) if status is None else (status,)), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    *_, line = done.stderr.splitlines() or [""]
    assert line.startswith(("relay-server", "relay-agent")), done.stderr
    for word in words:
        assert word in line, f"{word!r} is not in: {line}"
