from __future__ import annotations

import os
import resource
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from protocol import __version__
from protocol.process.address import HostPort
from protocol.process.cli import checks
from protocol.process.cli.checks import Finding, Verdict
from protocol.process.cli.command import CommandFailed
from protocol.process.state import StateFolder
from protocol.wire.noise import StaticKey
from relay_server.agents import status as relay_status
from relay_server.doctor import steps
from relay_server.doctor.context import Context
from relay_server.doctor.host import accepts
from relay_server.doctor.steps import LEAST_SPACE, MOST_NAMES, STEPS
from relay_server.net.accept_loop import listen
from relay_server.net.bind_check import lowest_free
from relay_server.registry.open import LOCK
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import load_or_make
from tests.support.ports import LOOPBACK, free_port

Status = dict[str, Any]
Runs = Callable[[Status], None]


@pytest.fixture
def context(state: StateFolder) -> Context:
    """A relay that has been started once, and knows one agent."""
    with Registry(state) as registry:
        load_or_make(state, registry)
        registry.remember_hosts([HostPort("vps.example.net", 7022)])
        registry.remember_link_ports([7022])
    return Context(state)


def enrol(context: Context, name: str, *ports: int) -> None:
    with Registry(context.state) as registry:
        token = secrets.token_bytes(16)
        registry.invite(
            name, token, now=0.0, lifetime=1e12, ports=ports, port_range=range(11111, 12111)
        )
        registry.redeem(token, StaticKey.generate().public, 0.0)


async def take(context: Context, name: str) -> Finding:
    """One step, and before it those that it needs."""
    step = next(step for step in STEPS if step.name == name)
    for needed in step.needs:
        await take(context, needed)
    return await step.check(context)


def status(*agents: Status, **more: object) -> Status:
    facts: Status = {
        "version": __version__,
        "age": 5.0,
        "listening": [],
        "descriptors": 20,
        "descriptor_limit": 20000,
        "agents": list(agents),
    }
    return facts | more


def agent(name: str, *services: tuple[int, str], attached: bool = True) -> Status:
    told = [{"port": port, "state": how} for port, how in services]
    return {"name": name, "attached": attached, "services": told}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Let a relay run that says so of itself. (Asking a real one waits for its answer.)"""

    def answer(says: Status) -> None:
        monkeypatch.setattr(relay_status, "ask", lambda path, command: says)

    return answer


# Configuration and state


async def test_the_configuration_is_read_as_the_relay_does(context: Context) -> None:
    assert "all defaults" in (await take(context, "config")).found
    file = context.state.path / "server.toml"
    file.write_text("hold = 3")
    finding = await take(context, "config")
    assert finding.verdict is Verdict.FAILED
    assert "server.toml: hold: unknown key" in finding.found
    file.write_text('hosts = ["a.example"]')
    assert "is understood" in (await take(context, "config")).found
    await take(context, "state")
    assert context.hosts == (HostPort("a.example", 7022),)


async def test_a_sound_folder(context: Context) -> None:
    enrol(context, "home")
    finding = await take(context, "state")
    assert finding.verdict is Verdict.OK
    assert "a key, a registry with 1 agent" in finding.found
    assert context.hosts == (HostPort("vps.example.net", 7022),)


async def test_no_folder_or_nothing_in_it(tmp_path: Path) -> None:
    finding = await take(Context(StateFolder(tmp_path / "nowhere")), "state")
    assert finding.verdict is Verdict.FAILED
    assert "no relay has its state here" in finding.found
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["registry.db", "relay.key"])
async def test_a_folder_or_a_file_that_others_may_use(context: Context, name: str) -> None:
    for path in (context.state.path / name, context.state.path):
        mode = path.stat().st_mode
        path.chmod(0o755)
        finding = await take(context, "state")
        assert finding.verdict is Verdict.FAILED
        assert "chmod" in finding.found
        path.chmod(mode)
    assert (await take(context, "state")).verdict is Verdict.OK


async def test_a_key_that_is_gone(context: Context) -> None:
    (context.state.path / "relay.key").unlink()
    finding = await take(context, "state")
    assert finding.verdict is Verdict.FAILED
    assert "relay.key" in finding.found
    assert not (context.state.path / "relay.key").exists()


async def test_a_registry_that_is_damaged(context: Context) -> None:
    (context.state.path / "registry.db").write_bytes(b"no database at all\n" * 500)
    finding = await take(context, "state")
    assert finding.verdict is Verdict.FAILED
    assert "damaged" in finding.found


async def test_files_of_somebody_else(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_foreign", lambda state: ["registry.db"])
    finding = await take(context, "state")
    assert finding.verdict is Verdict.FAILED
    assert "chown --reference=" in finding.advice


def test_what_is_foreign(context: Context) -> None:
    assert steps._foreign(context.state) == []
    if os.geteuid() == 0:
        os.chown(context.state.path / "relay.key", 12345, -1)
        assert steps._foreign(context.state) == ["relay.key"]


@pytest.mark.parametrize(
    ("free", "verdict"), [(LEAST_SPACE - 1, Verdict.FAILED), (LEAST_SPACE, Verdict.OK)]
)
async def test_a_disk_that_is_about_to_be_full(
    context: Context, monkeypatch: pytest.MonkeyPatch, free: int, verdict: Verdict
) -> None:
    real = os.statvfs(context.state.path)
    values = [1, 1, real.f_blocks, free, free, *real[5:]]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    assert (await take(context, "state")).verdict is verdict


# The process


async def test_nothing_runs(context: Context, runs: Runs) -> None:
    finding = await take(context, "relay")
    assert finding.verdict is Verdict.FAILED
    assert finding.found == "no relay runs with this state folder"
    assert "start" in finding.advice


async def test_one_that_runs(context: Context, runs: Runs) -> None:
    runs(status())
    finding = await take(context, "relay")
    assert finding.verdict is Verdict.OK
    assert f"ssh-relay {__version__} runs" in finding.found


async def test_one_of_another_version(context: Context, runs: Runs) -> None:
    runs(status(version="0.0.9"))
    finding = await take(context, "relay")
    assert finding.verdict is Verdict.NOTE
    assert f"0.0.9 runs since 5s, but {__version__} is installed" in finding.found


async def test_one_that_does_not_answer(
    context: Context, autojump_clock: trio.testing.MockClock
) -> None:
    with context.state.lock(LOCK):
        finding = await take(context, "relay")
    assert finding.verdict is Verdict.FAILED
    assert "one may run" in finding.found


async def test_one_that_hangs(
    context: Context, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    asked = []

    def hangs(path: Path, command: str) -> None:
        asked.append(command)
        raise CommandFailed("the running process does not answer")

    monkeypatch.setattr(relay_status, "ask", hangs)
    finding = await take(context, "relay")
    assert finding.verdict is Verdict.FAILED
    assert finding.found == "the running process does not answer"
    assert len(asked) > 1


# Ports


async def test_where_agents_dial_in(context: Context, runs: Runs) -> None:
    with listen(LOOPBACK, 0, dual_stack=False) as sock:
        where = f"{LOOPBACK}:{sock.getsockname()[1]}"
        runs(status(listening=[where]))
        await take(context, "relay")
        finding = await take(context, "listening")
        assert finding.verdict is Verdict.OK
        assert where in finding.found
        sock.close()
        finding = await take(context, "listening")
    assert finding.verdict is Verdict.FAILED
    assert f"no answer at {where}" in finding.found


async def test_a_wildcard_is_tried_at_home() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        port = sock.getsockname()[1]
        assert await accepts(HostPort("::", port))
        assert await accepts(HostPort("0.0.0.0", port))


async def test_the_port_of_a_relay_that_is_to_be_started(context: Context) -> None:
    with listen(LOOPBACK, 0, dual_stack=False) as sock:
        where = f"{LOOPBACK}:{sock.getsockname()[1]}"
        (context.state.path / "server.toml").write_text(f'listen = ["{where}"]')
        finding = await take(context, "listening")
        assert finding.verdict is Verdict.FAILED
        assert f"another program holds {where}" in finding.found
        assert "ss -ltnp" in finding.advice
    assert (await take(context, "listening")).verdict is Verdict.OK


async def test_the_ports_that_the_last_relay_was_told(context: Context) -> None:
    with Registry(context.state) as registry:
        registry.remember_link_ports([port := free_port()])
    await take(context, "state")
    assert (await take(context, "listening")).found == f"[::]:{port} can be had"
    with socket.create_server(("::", port), family=socket.AF_INET6):
        assert (await take(context, "listening")).verdict is Verdict.FAILED


async def test_public_ports_that_are_open_free_or_held(context: Context, runs: Runs) -> None:
    enrol(context, "home", first := free_port(), second := free_port())
    (context.state.path / "server.toml").write_text(f'bind = "{LOOPBACK}"')
    with listen(LOOPBACK, first, dual_stack=False):
        finding = await take(context, "ports")
        assert finding.verdict is Verdict.FAILED
        assert f"another program holds port {first}" in finding.found
        runs(status(agent("home", (first, "open"), (second, "closed"))))
        await take(context, "relay")
        finding = await take(context, "ports")
    assert finding.verdict is Verdict.OK
    assert finding.found.startswith("1 of 2 granted ports are open")


async def test_ports_that_only_root_may_open(context: Context, runs: Runs) -> None:
    enrol(context, "home", 1)
    lowest = lowest_free()
    runs(status(agent("home", attached=False)))
    await take(context, "relay")
    finding = await take(context, "ports")
    assert finding.verdict is (Verdict.NOTE if lowest > 1 else Verdict.OK)


# Limits


async def test_descriptors_of_the_running_relay(context: Context, runs: Runs) -> None:
    enrol(context, "home")
    wanted = context.config.half_open + steps._FOR_AN_AGENT + steps._FOR_THE_PROCESS
    for limit, verdict in ((wanted, Verdict.OK), (wanted - 1, Verdict.FAILED)):
        runs(status(descriptor_limit=limit))
        await take(context, "relay")
        finding = await take(context, "files")
        assert finding.verdict is verdict
        assert f"20 of {limit} descriptors are in use" in finding.found


@pytest.mark.parametrize(
    ("hard", "verdict", "text"),
    [
        (resource.RLIM_INFINITY, Verdict.OK, "any number of descriptors are allowed"),
        (1 << 20, Verdict.OK, "1048576 descriptors are allowed"),
        (64, Verdict.FAILED, "64 descriptors are allowed"),
    ],
)
async def test_descriptors_of_one_to_be_started(
    context: Context, monkeypatch: pytest.MonkeyPatch, hard: int, verdict: Verdict, text: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, hard))
    finding = await take(context, "files")
    assert finding.verdict is verdict
    assert text in finding.found


@pytest.mark.parametrize(("small", "verdict"), [({}, Verdict.OK), ({"a.b": 5}, Verdict.NOTE)])
async def test_buffers(
    context: Context, monkeypatch: pytest.MonkeyPatch, small: dict[str, int], verdict: Verdict
) -> None:
    monkeypatch.setattr(checks, "small_buffers", lambda wanted: small)
    assert (await take(context, "buffers")).verdict is verdict


# Agents


async def test_agents_that_are_here_or_away(context: Context, runs: Runs) -> None:
    assert "no agent is enrolled" in (await take(context, "agents")).found
    for number in range(MOST_NAMES + 2):
        enrol(context, f"home-{number}")
    here = [agent(f"home-{number}") for number in range(MOST_NAMES + 2)]
    runs(status(*here))
    assert (await take(context, "agents")).verdict is Verdict.OK
    runs(status(here[0]))
    finding = await take(context, "agents")
    assert finding.verdict is Verdict.NOTE
    assert finding.found.startswith(f"{MOST_NAMES + 1} of {MOST_NAMES + 2} agents are away: home-1")
    assert finding.found.endswith(", …")
    runs(status(*here[:-1], agent(here[-1]["name"], attached=False)))
    assert here[-1]["name"] in (await take(context, "agents")).found


def test_each_step_comes_after_those_that_it_needs() -> None:
    for number, step in enumerate(STEPS):
        assert set(step.needs) <= {before.name for before in STEPS[:number]}
