"""A laptop, a VPS and a router, each in a network namespace of its own, on this machine.

    laptop ──veth── vps ──TUN, wan.py── router
    192.0.2.2       192.0.2.1, 203.0.113.1 and .2
                                          198.51.100.2, later perhaps .3

The relay runs on the VPS, agent and SSH server on the router, ssh on the laptop: all real, and all
the programs of the end-to-end tests. Whatever is started or opened while a namespace is entered
belongs to it, so they need no word about namespaces.

The router asks a name service of its own, which tests can silence and re-point. Nothing here
reaches beyond the machine, and several labs stand side by side.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

from tests.support.lab.namespace import Namespace, remove_leftovers
from tests.support.lab.wan import open_device
from tests.support.ports import LOOPBACK, listens, wait_until_listening
from tests.support.processes import ProcessUnderTest, program, run, script
from tests.support.programs import Agent, Relay, services
from tests.support.repository import ROOT
from tests.support.ssh import Dropbear, Login, SshServer
from tests.support.waiting import LIMIT, eventually

VPS: Final = "203.0.113.1"
VPS_SECOND: Final = "203.0.113.2"
VPS_TO_LAPTOP: Final = "192.0.2.1"
LAPTOP: Final = "192.0.2.2"
LAPTOPS: Final = "192.0.2.0/24"  # what the VPS looks for there
ROUTER: Final = "198.51.100.2"
ROUTER_SECOND: Final = "198.51.100.3"
# Each lab has all ports for itself.
RELAY_PORT: Final = 7022
SSH_PORT: Final = 11111
RELAY_NAME: Final = "vps.lab"
# Of a visitor who only wants to know whether anybody answers, before the next one tries.
PATIENCE: Final = 1.0
# As such a visitor begins; the relay holds those who say nothing.
IDENTIFICATION: Final = b"SSH-2.0-lab\r\n"

# What a link is like where the test says nothing: a modest DSL line.
DELAY: Final = 0.010
RATE: Final = 6e6
QUEUE: Final = 60_000  # 80 ms
# What routers and most users have; a result must not depend on the machine's own choice. Set by
# route, as a namespace may not choose for itself what the machine does not allow to everybody.
CONGESTION: Final = "congctl cubic"

Way: TypeAlias = Literal["up", "down"]
BOTH: Final[tuple[Way, Way]] = ("up", "down")


def missing() -> str | None:
    """Why there can be no lab here, in one line; None if there can."""
    if os.geteuid() != 0:
        return "the lab needs root, to make network namespaces; LAB=no leaves it out"
    for path in ("/dev/net/tun", "/proc/self/ns/net"):
        if not Path(path).exists():
            return f"the lab needs {path}; LAB=no leaves it out"
    if shutil.which("ip") is None:
        return "the lab needs the command ip (iproute2); LAB=no leaves it out"
    try:
        # Root in a container may be allowed neither.
        probe = Namespace(f"lab-{os.getpid()}-0-probe")
        try:
            with probe.entered():
                os.close(open_device())
        finally:
            probe.remove()
    except (AssertionError, OSError) as wrong:
        reason = " ".join(str(wrong).split())
        return f"the lab may not make what it needs ({reason}); LAB=no leaves it out"
    return None


class Wan:
    """The process of wan.py, obeying one command at a time."""

    def __init__(self, router: Namespace, vps: Namespace, *, seed: int | None = None) -> None:
        argv = [sys.executable, "-m", "tests.support.lab.wan", router.name, vps.name]
        argv += [] if seed is None else ["--seed", str(seed)]
        self._popen = subprocess.Popen(
            argv, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        began = self._answer()
        self.seed: int = began["seed"]
        self.device: str = began["device"]
        # Without a link-local address the kernels say nothing by themselves that would be counted.
        for namespace in (router, vps):
            namespace.ip(
                f"link set {self.device} addrgenmode none",
                f"link set {self.device} mtu {began['mtu']} txqueuelen {began['queue']} up",
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def command(self, do: str, **arguments: object) -> dict[str, Any]:
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._popen.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line, f"the forwarder ended with status {self._popen.wait(LIMIT)}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def shape(self, *ways: Way, **shape: float) -> None:
        """Set delay, rate, queue or loss of these directions, or of both."""
        for way in ways or BOTH:
            self.command("shape", direction=way, **shape)

    def hole(self, *ways: Way, is_open: bool = True) -> None:
        """Swallow all that goes these directions, or both."""
        for way in ways or BOTH:
            self.command("hole", direction=way, open=is_open)

    def mend(self) -> None:
        self.hole(is_open=False)

    def forget_flows(self, *, answer: Literal["reset", "silence"]) -> None:
        self.command("forget", answer=answer)

    def statistics(self) -> dict[Way, dict[str, int]]:
        answer: dict[Way, dict[str, int]] = self.command("statistics")  # type: ignore[assignment]
        return answer

    def stop(self) -> None:
        """It ends with its stdin."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()
        self._popen.wait(LIMIT)
        self._popen.stdout.close()


class Names:
    """The router's name service: answers at once, as told, or not at all."""

    def __init__(self, namespace: Namespace) -> None:
        self.addresses = {RELAY_NAME: VPS}
        self.silent = False
        self.asked = 0
        with namespace.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.bind((LOOPBACK, 53))
        namespace.write_file("resolv.conf", f"nameserver {LOOPBACK}\n")
        namespace.write_file("hosts", f"{LOOPBACK} localhost\n")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(512)
            if not query:  # from `stop`
                return
            self.asked += 1
            if not self.silent:
                self._socket.sendto(self._answer(query), sender)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while size := query[at]:
            labels.append(query[at + 1 : at + 1 + size].decode("ascii"))
            at += 1 + size
        question, kind = query[12 : at + 5], query[at + 2]
        address = self.addresses.get(".".join(labels).lower())
        # Response, recursion available; code 3 is "no such name".
        flags = 0x8180 if address else 0x8183
        answers = b""
        if address and kind == 1:  # A; there is a name but nothing of any other kind
            # The name is the question's, at 12; class IN; not to be remembered.
            answers = struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(address)
        counts = struct.pack(">HHHHH", flags, 1, bool(answers), 0, 0)
        return query[:2] + counts + question + answers

    def stop(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(LIMIT)
        self._socket.close()


class LabRelay(Relay):
    """A relay that its agents know by name, and that opens its ports to everybody."""

    def __init__(self, folder: Path, *, config: str = "") -> None:
        super().__init__(folder, bind=None, config=config)
        self.port = RELAY_PORT

    def start(self, *, limit: float = LIMIT) -> ProcessUnderTest:
        argv = [script("relay-server"), "run", "--state-dir", str(self.state)]
        argv += ["--config", str(self.config), "--listen", f"0.0.0.0:{self.port}"]
        argv += ["--host", f"{RELAY_NAME}:{self.port}"]
        self._process = ProcessUnderTest(argv, environment=self.environment)
        process = self._process
        eventually(
            lambda: listens(self.port) or not process.running,
            what="the relay listens",
            limit=limit,
        )
        assert process.running, process.describe()
        return process


class LabAgent(Agent):
    """An agent that sees the router's own files in /etc."""

    def __init__(self, folder: Path, namespace: Namespace) -> None:
        super().__init__(folder)
        # It becomes the command that it starts, so the process id is the agent's.
        self._inside = [program("ip"), "netns", "exec", namespace.name]

    def try_join(
        self, invitation: str, *services: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        argv = [*self._inside, script("relay-agent"), "join"]
        argv += [invitation] if stdin is None else []
        for service in services:
            argv += ["--service", service]
        argv += ["--state-dir", str(self.state)]
        return run(argv, environment=self.environment, stdin=stdin)

    def start(self, *ports: int) -> ProcessUnderTest:
        assert not ports, "those are on another machine here"
        argv = [*self._inside, script("relay-agent"), "run", "--state-dir", str(self.state)]
        self._process = ProcessUnderTest(argv, environment=self.environment)
        return self._process


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a log, and when it was seen on this machine's monotonic clock."""

    at: float
    who: str
    text: str


class Journal:
    """The logs of all processes, by one clock finer than their own."""

    # How late a line may be stamped; what is measured by these stamps is tenths of seconds.
    _GLANCE = 0.02

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._watched: list[tuple[str, ProcessUnderTest]] = []
        self._seen: dict[int, int] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def watch(self, who: str, process: ProcessUnderTest) -> ProcessUnderTest:
        with self._lock:
            self._watched.append((who, process))
        return process

    def _watch(self) -> None:
        while not self._stopping.wait(self._GLANCE):
            self.look()

    def look(self) -> None:
        now = time.monotonic()
        with self._lock:
            for number, (who, process) in enumerate(self._watched):
                seen = self._seen.get(number, 0)
                new = process.log[seen:]
                self._seen[number] = seen + len(new)
                self.lines += [Line(at=now, who=who, text=text) for text in new]

    def first(self, *events: str, since: float, who: str | None = None) -> Line | None:
        """The first line about one of `events` from the moment `since` on."""
        self.look()
        for line in self.lines:
            if line.at >= since and who in (None, line.who) and names_one(line.text, events):
                return line
        return None

    def count(self, *events: str, since: float = 0.0, who: str | None = None) -> int:
        self.look()
        return sum(
            line.at >= since and who in (None, line.who) and names_one(line.text, events)
            for line in self.lines
        )

    def matching(self, pattern: re.Pattern[str], *, since: float) -> list[Line]:
        """Those of whose "WHO: TEXT" `pattern` matches a part."""
        self.look()
        return [
            line
            for line in self.lines
            if line.at >= since and pattern.search(f"{line.who}: {line.text}")
        ]

    def describe(self, *, since: float) -> str:
        self.look()
        return "\n".join(f"{line.at - since:8.2f} {line.who:8} {line.text}" for line in self.lines)

    def processes(self) -> list[ProcessUnderTest]:
        with self._lock:
            return [process for _, process in self._watched]

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(LIMIT)


def names_one(text: str, events: Sequence[str]) -> bool:
    return any(word in events for word in text.split()[:4])


class Network:
    """The three machines, the router's SSH server, and what leads to it from the VPS.

    All is at work from the first line of the `with` on, and nothing is left after it.
    """

    _number = 0

    def __init__(
        self, folder: Path, *, seed: int | None = None, server: type[SshServer] = Dropbear
    ) -> None:
        self.folder = folder
        self._seed = seed
        self._server = server
        self._undo = contextlib.ExitStack()
        self.began = time.monotonic()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._build(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _build(self, undo: contextlib.ExitStack) -> None:
        self.build_network(undo)
        self.names = Names(self.router)
        undo.callback(self.names.stop)
        self.journal = Journal()
        undo.callback(self.journal.stop)
        self.login = Login(self.folder / "login")
        with self.router.entered():
            self.ssh_server = self._server(self.folder / "ssh-server", self.login)
        undo.callback(self.ssh_server.stop)
        self.journal.watch("server", self.ssh_server.process)
        self._build_way(undo)
        with self.vps.entered():
            wait_until_listening(SSH_PORT)

    def _build_way(self, undo: contextlib.ExitStack) -> None:
        """Start what makes the router's SSH server answer at SSH_PORT of the VPS."""
        raise NotImplementedError

    def build_network(self, undo: contextlib.ExitStack) -> None:
        """Namespaces and paths, without a process in them."""
        remove_leftovers()
        Lab._number += 1
        made = [
            Namespace(f"lab-{os.getpid()}-{Lab._number}-{role}")
            for role in ("laptop", "vps", "router")
            # Each removed even if a later one fails.
        ]
        for namespace in made:
            undo.callback(namespace.remove)
        self.laptop, self.vps, self.router = made
        self.wan = Wan(self.router, self.vps, seed=self._seed)
        undo.callback(self.wan.stop)
        print(f"lab {self.router.name}: seed {self.wan.seed}")
        device = self.wan.device
        self.vps.ip(
            "link set lo up",
            f"link add lan0 type veth peer name lan0 netns {self.laptop.name}",
            f"addr add {VPS_TO_LAPTOP}/32 dev lan0",
            "link set lan0 up",
            f"addr add {VPS}/32 dev {device}",
            f"addr add {VPS_SECOND}/32 dev {device}",
            f"route add 198.51.100.0/24 dev {device} src {VPS} {CONGESTION}",
        )
        self.laptop.ip(
            "link set lo up",
            f"addr add {LAPTOP}/32 dev lan0",
            "link set lan0 up",
            f"route add default dev lan0 {CONGESTION}",
        )
        self.vps.ip(f"route add {LAPTOPS} dev lan0 {CONGESTION}")
        self.router.ip("link set lo up", f"addr add {ROUTER}/32 dev {device}")
        self.router.ip(self._router_route)
        self.wan.shape(delay=DELAY, rate=RATE, queue=QUEUE)

    # What a test does to it

    def set_router_interface(self, *, is_up: bool) -> None:
        """Coming up, it gets its route back, as by DHCP."""
        device = self.wan.device
        if is_up:
            self.router.ip(f"link set {device} up", self._router_route)
        else:
            self.router.ip(f"link set {device} down")

    def change_router_address(self) -> None:
        """As a new lease does: the old address is gone with its routes, another one comes."""
        device = self.wan.device
        self.router.ip(
            f"addr del {ROUTER}/32 dev {device}",
            f"addr add {ROUTER_SECOND}/32 dev {device}",
            self._router_route,
        )

    @property
    def _router_route(self) -> str:
        return f"route replace default dev {self.wan.device} {CONGESTION}"

    # What a user sees of it

    def start_ssh(self, command: str) -> subprocess.Popen[bytes]:
        """An ssh from the laptop that runs `command` on the router, with three pipes to it."""
        # How a connection ended is told at this level, and the first of two options holds.
        argv = [program("ssh"), "-oLogLevel=INFO", *self.login.options]
        argv += ["-p", str(SSH_PORT), VPS_TO_LAPTOP, command]
        pipe = subprocess.PIPE
        with self.laptop.entered():
            return subprocess.Popen(
                argv, env=self.login.environment, stdin=pipe, stdout=pipe, stderr=pipe
            )

    def answers(self) -> bool:
        """Whether the SSH server answers a new visitor, who waits no longer than `PATIENCE`."""
        address = (VPS_TO_LAPTOP, SSH_PORT)
        with (
            self.laptop.entered(),
            contextlib.suppress(OSError),
            socket.create_connection(address, timeout=PATIENCE) as visitor,
        ):
            visitor.sendall(IDENTIFICATION)
            return visitor.recv(8) == b"SSH-2.0-"
        return False

    def wait_for_banner(self, *, limit: float) -> None:
        eventually(self.answers, what="an SSH banner through the public port", limit=limit)

    def describe(self) -> str:
        parts = [self.journal.describe(since=self.began)]
        parts += [process.describe() for process in self.journal.processes()]
        return "\n".join(parts)


@contextlib.contextmanager
def bare_network(*, seed: int | None = None) -> Iterator[Network]:
    """One with nothing running in it, which therefore needs no folder."""
    network = Network(Path("/nonexistent"), seed=seed)
    with contextlib.ExitStack() as undo:
        network.build_network(undo)
        yield network


class Lab(Network):
    """With relay and agent."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int | None = None,
        relay_config: str = "",
        agent_config: str = "",
        enrolled: Path | None = None,
        server: type[SshServer] = Dropbear,
    ) -> None:
        """`enrolled` is the folder of a lab that is over: relay and agent know each other from it.

        That spares an invitation and a join, which take more than everything else together.
        """
        super().__init__(folder, seed=seed, server=server)
        self._enrolled = enrolled
        self._relay_config = relay_config
        self._agent_config = agent_config

    def _build_way(self, undo: contextlib.ExitStack) -> None:
        self.relay = LabRelay(self.folder / "relay", config=self._relay_config)
        undo.callback(self.relay.stop)
        self.agent = LabAgent(self.folder / "agent", self.router)
        undo.callback(self.agent.stop)
        if self._enrolled is not None:
            for side in ("relay", "agent"):
                shutil.copytree(self._enrolled / side / "state", self.folder / side / "state")
        # Its port is another one than when it was enrolled.
        ssh = services(("ssh", self.ssh_server.port, SSH_PORT))
        self.agent.configure(self._agent_config + ssh)
        self.start_relay()
        if self._enrolled is None:
            service = f"ssh={LOOPBACK}:{self.ssh_server.port}@{SSH_PORT}"
            self.agent.join(self.relay.invite("home", SSH_PORT), service)
        self.start_agent()

    def start_relay(self) -> ProcessUnderTest:
        with self.vps.entered():
            return self.journal.watch("relay", self.relay.start())

    def start_agent(self) -> ProcessUnderTest:
        return self.journal.watch("agent", self.agent.start())
