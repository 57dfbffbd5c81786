"""`relay-server doctor`: what the relay stands on, and what is wrong with it.

It reads, asks the running relay over its control socket, and tries ports without listening. Whether
agents and visitors get here from elsewhere is seen from there: by `relay-agent doctor`. The steps
here are those of the relay itself; those of its machine are in `host`.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

import trio

from protocol import __version__
from protocol.process.address import HostPort, parse_host_port
from protocol.process.cli.checks import (
    POLL_INTERVAL,
    SETTLE_TIMEOUT,
    Finding,
    Step,
    check_buffers,
    failed,
    note,
    ok,
)
from protocol.process.cli.command import CommandFailed
from protocol.process.cli.text import counted, span
from protocol.process.config import ConfigError
from protocol.process.limits import descriptor_limit
from protocol.process.service_manager import how_to_start
from protocol.process.state import StateError, StateFolder
from relay_server import CONFIG_FILE, PROGRAM
from relay_server.agents.status import ask_status
from relay_server.config import load_config
from relay_server.doctor.context import Context
from relay_server.doctor.host import (
    accepts,
    check_address,
    check_clock,
    check_firewall,
    check_service,
)
from relay_server.net.bind_check import bind_error, lowest_free, who_holds
from relay_server.registry.open import LOCK, existing_registry
from relay_server.registry.relay_keys import load

# The registry and its journal are far smaller; a disk with less is about to be full.
LEAST_SPACE: Final = 50 << 20
# A link and two listening sockets for an agent; a visitor has one. Half-open callers are bounded by
# half_open; visitors are anybody's guess: an SSH session or two for each agent.
_FOR_AN_AGENT: Final = 3 + 2
_FOR_THE_PROCESS: Final = 64
# More in a row are better read in `relay-server agents`.
MOST_NAMES: Final = 5


async def _check_config(context: Context) -> Finding:
    try:
        context.config = load_config(context.config_file, context.state.path)
    except ConfigError as exc:
        return failed(str(exc), "put that line right; the relay starts with no other")
    file = context.config_file or context.state.path / CONFIG_FILE
    return ok(f"{file} is understood" if file.exists() else f"all defaults, as there is no {file}")


async def _check_state(context: Context) -> Finding:
    state = context.state
    try:
        with existing_registry(state) as registry:  # which checks its integrity, too
            context.agents = registry.agents()
            context.hosts = context.config.dialled or registry.hosts()
            context.link_ports = registry.link_ports()
        keys = load(state)
        foreign = _foreign(state)
        space = os.statvfs(state.path)
    except StateError as exc:
        return failed(str(exc), "put that right, or run this as the relay's user (sudo …)")
    if foreign:
        return failed(
            f"{', '.join(foreign)} in {state.path} belong to somebody else than the folder",
            f"chown --reference={state.path} {state.path}/*",
        )
    free = space.f_bavail * space.f_frsize
    if free < LEAST_SPACE:
        return failed(
            f"only {free >> 20} MiB are free on the disk of {state.path}",
            "make room: a full disk keeps agents from enrolling and keys from being saved",
        )
    count = len(context.agents)
    text = f"{state.path} is sound: a key, a registry with {counted(count, 'agent')}"
    if keys.former:
        return ok(f"{text}; agents still follow from {len(keys.former)} older key(s)")
    return ok(text)


def _foreign(state: StateFolder) -> list[str]:
    """Files that the folder's owner, as whom the relay runs, may not be able to read."""
    owner = state.path.stat().st_uid
    return sorted(one.name for one in state.path.iterdir() if one.lstat().st_uid != owner)


async def _check_relay(context: Context) -> Finding:
    context.running, wrong = None, ""
    with trio.move_on_after(SETTLE_TIMEOUT):
        while context.running is None:
            try:
                context.running = ask_status(context.state)
                if context.running is None:
                    with context.state.lock(LOCK):
                        return failed(
                            "no relay runs with this state folder",
                            f"start it: {how_to_start(PROGRAM)}",
                        )
            except CommandFailed as exc:  # a busy machine may need more than one attempt
                wrong = str(exc)
            except StateError as exc:
                wrong = f"no relay answers, but one may run: {exc}"
            await trio.sleep(POLL_INTERVAL)
    if context.running is None:
        return failed(wrong, f"look at its log, and start it anew: {how_to_start(PROGRAM)}")
    version, age = context.running["version"], span(context.running["age"])
    if version != __version__:
        return note(
            f"ssh-relay {version} runs since {age}, but {__version__} is installed",
            "let it take over: relay-server upgrade; logins go on",
        )
    return ok(f"ssh-relay {version} runs since {age}")


async def _check_listening(context: Context) -> Finding:
    """Where agents dial in."""
    if context.running is not None:
        where = [parse_host_port(text) for text in context.running["listening"]]
        silent = [str(one) for one in where if not await accepts(one)]
        text = f"agents can dial in at {', '.join(map(str, where))}"
        if silent:
            return failed(
                f"no answer at {', '.join(silent)}",
                "the relay hangs, or this machine's firewall drops what comes from itself",
            )
        return ok(text)
    wanted = context.config.listen
    if context.link_ports and set(context.link_ports) != set(context.config.link_ports):
        # The last relay was told others on its command line.
        wanted = tuple(HostPort("::", port) for port in context.link_ports)
    held = [one for one in wanted if bind_error(one, dual_stack=True) == errno.EADDRINUSE]
    if held:
        shown = ", ".join(map(str, held))
        return failed(f"another program holds {shown}", who_holds(held))
    return ok(f"{', '.join(map(str, wanted))} can be had")


async def _check_ports(context: Context) -> Finding:
    """The public ports that agents may publish."""
    ports = context.public_ports
    served = {
        (service["port"], service["state"])
        for agent in context.present
        for service in agent["services"]
    }
    is_open = {port for port, state in served if state == "open"}
    bind = context.config.bind
    wanted = [
        HostPort(host, port)
        for port in ports
        if port not in is_open
        for host in ([bind] if bind else ["0.0.0.0", "::"])  # noqa: S104 - as the relay does
    ]
    held = [one for one in wanted if bind_error(one) == errno.EADDRINUSE]
    if held:
        shown = ", ".join(map(str, sorted({one.port for one in held})))
        return failed(f"another program holds port {shown}", who_holds(held))
    low = [port for port in ports if port not in is_open and port < lowest_free()]
    if low and context.running is not None:
        return note(
            f"ports below {lowest_free()} are not for everybody: {', '.join(map(str, low))}",
            "if the log says that it may not open them: docs/systemd.md, ports below 1024",
        )
    if not ports:
        return ok("no agent has a port yet")
    count = len(is_open & set(ports))
    others = "; nobody else has the others" if count < len(ports) else ""
    return ok(f"{count} of {len(ports)} granted ports are open{others}")


async def _check_files(context: Context) -> Finding:
    """Descriptors: of the running relay, or what one may have that is started like this command."""
    wanted = context.config.half_open + _FOR_AN_AGENT * len(context.agents) + _FOR_THE_PROCESS
    if context.running is not None:
        used, limit = context.running["descriptors"], context.running["descriptor_limit"]
        text = f"{used} of {limit} descriptors are in use"
    else:
        limit = descriptor_limit(hard=True)
        allowed = "any number of" if limit == sys.maxsize else limit
        text = f"{allowed} descriptors are allowed"
    if limit < wanted:
        return failed(
            f"{text}, and {len(context.agents)} agents may need {wanted}",
            "LimitNOFILE= in the unit, or ulimit -n before the relay is started",
        )
    return ok(text)


async def _check_buffers(context: Context) -> Finding:
    return check_buffers(context.config.stream_window_max)


async def _check_agents(context: Context) -> Finding:
    attached = {agent["name"] for agent in context.present if agent["attached"]}
    away = [agent.name for agent in context.agents if agent.name not in attached]
    if not context.agents:
        return note("no agent is enrolled", "invite one: relay-server invite NAME")
    if away:
        shown = ", ".join(away[:MOST_NAMES]) + (", …" if len(away) > MOST_NAMES else "")
        return note(
            f"{len(away)} of {len(context.agents)} agents are away: {shown}",
            "if one should be here, run this where it is: relay-agent doctor",
        )
    return ok(f"all that are enrolled ({len(context.agents)}) are attached")


STEPS: Final[tuple[Step[Context], ...]] = (
    Step("config", _check_config),
    Step("state", _check_state, needs=("config",)),
    Step("relay", _check_relay, needs=("state",)),
    Step("service", check_service),
    Step("clock", check_clock),
    Step("listening", _check_listening, needs=("config",)),
    Step("ports", _check_ports, needs=("state",)),
    Step("address", check_address, needs=("state",)),
    Step("firewall", check_firewall, needs=("state",)),
    Step("files", _check_files, needs=("state",)),
    Step("buffers", _check_buffers),
    Step("agents", _check_agents, needs=("relay",)),
)
