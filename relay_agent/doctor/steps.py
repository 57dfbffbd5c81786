"""`relay-agent doctor`: every step of the way from here to a visitor, and what is wrong with it.

It works beside a running agent and cannot disturb it. To the relay it proves this agent's key and
says that it only asks (INQUIRY), so no session is touched. About the session it asks the running
agent over its control socket. The steps here are those of this machine and of the whole way; those
up to the relay are in `relay_steps`.
"""

from __future__ import annotations

from typing import Final

import trio

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
from protocol.process.cli.text import milliseconds, span
from protocol.process.config import ConfigError
from protocol.process.service_manager import how_to_start
from protocol.process.state import StateError
from relay_agent import PROGRAM
from relay_agent.config import load_config
from relay_agent.doctor.context import Context
from relay_agent.doctor.relay_steps import (
    check_clock,
    check_connect,
    check_handshake,
    check_key,
    check_name,
    check_ports,
    check_route,
)
from relay_agent.identity.agent_keys import load_agent_keys
from relay_agent.identity.enrolment import LOCK, load_enrolment
from relay_agent.join import VISIT_TIMEOUT
from relay_agent.link.status import AgentStatus, ask_status
from relay_agent.net.dial import DialFailed, dial
from relay_agent.services.service import Service
from relay_agent.services.ssh_discovery import BANNER_TIMEOUT, NoBanner, read_banner

# What an SSH client says first: the relay may hold a visitor that is silent, and refuse one that
# says something else.
_GREETING: Final = b"SSH-2.0-ssh_relay_doctor\r\n"


async def _check_enrolment(context: Context) -> Finding:
    try:
        context.config = load_config(context.state, context.config_file)
        context.enrolment = load_enrolment(context.state)
        context.agent_keys = load_agent_keys(context.state)
        context.filed = context.config.services_over(context.enrolment.services)
        context.services = context.filed
    except ConfigError as exc:
        return failed(str(exc), "once that is done, run this again")
    except StateError as exc:
        return failed(str(exc), "once that is done, run this again, as the agent's user")
    hosts = ", ".join(map(str, context.enrolment.relay.hosts))
    return ok(f"this is {context.enrolment.name}, whose relay is {hosts}")


async def _check_agent(context: Context) -> Finding:
    """Whether an agent runs here. Its link is a later step: the way to the relay comes first."""
    locked = ""
    with trio.move_on_after(SETTLE_TIMEOUT):
        while True:
            try:
                running = ask_status(context.state)
            except CommandFailed as exc:
                return failed(
                    str(exc), f"look at its log, and start it anew: {how_to_start(PROGRAM)}"
                )
            if running is not None:
                context.running = running
                # Its services may be from its command line, or from files as they were before.
                context.services = _served(running) or context.filed
                return ok(f"an agent runs here for {span(running['age'])}")
            try:
                with context.state.lock(LOCK):
                    return failed("no agent runs here", f"start it: {how_to_start(PROGRAM)}")
            except StateError as exc:
                locked = str(exc)
            await trio.sleep(POLL_INTERVAL)
    return failed(
        f"no agent answers here, but one may run: {locked}",
        f"its log says why (no-control-socket); once that is put right: {how_to_start(PROGRAM)}",
    )


def _served(status: AgentStatus) -> tuple[Service, ...]:
    return tuple(
        Service(one["service"], parse_host_port(one["target"]), one["port"])
        for one in status["services"]
    )


async def _check_target(context: Context) -> Finding:
    """As `join` does: an SSH server must show a banner, any other target accept a connection."""
    found, wrong = [], []
    for service in context.services:
        deadline = trio.current_time() + BANNER_TIMEOUT
        if not _is_ssh(service):
            try:
                (await dial([service.target], deadline=deadline)).close()
                found.append(f"{service.name}: {service.target} answers")
            except DialFailed as exc:
                wrong.append(f"{service.name}: {exc}")
                context.silent.add(service.name)
            continue
        try:
            banner = await read_banner(service.target.host, service.target.port, deadline)
            found.append(f"{service.name}: {service.target} shows {banner}")
        except NoBanner as exc:
            wrong.append(f"{service.name}: {exc}")
            context.silent.add(service.name)
    text = "; ".join(found + wrong)
    return failed(text, _START_TARGET) if wrong else ok(text)


_START_TARGET: Final = (
    "start that server (on OpenWrt: service dropbear start), or name its address and port in"
    " agent.toml"
)


def _is_ssh(service: Service) -> bool:
    return "ssh" in service.name.lower()  # as the relay's guard has it


async def _check_buffers(context: Context) -> Finding:
    return check_buffers(min(context.config.stream_window_max, context.config.replay))


async def _check_link(context: Context) -> Finding:
    """What the running agent says about its own session."""
    status = await _settled(context)
    if not status["attached"]:
        why = status["failure"] or "it has just begun"
        return failed(
            f"the running agent has no link: {why}",
            "it tries again by itself; the steps above say what is in its way, and if they are all"
            f" well it runs with an older enrolment: {how_to_start(PROGRAM)}",
        )
    link = status["link"]
    text = f"attached for {span(link['age'] or 0.0)}, round trip {milliseconds(link['rtt'])}"
    refused = [one for one in status["services"] if one["state"] != "open"]
    if refused:
        why = ", ".join(f"{one['service']}: {one['reason'] or 'no answer'}" for one in refused)
        return failed(
            f"{text}, but the relay does not serve {why}",
            "on the VPS: relay-server status; a port that another program holds is tried again"
            " every 2 s",
        )
    served, filed = (
        {(one.name, one.target, one.port) for one in services}
        for services in (_served(status), context.filed)
    )
    if served != filed:
        return note(
            f"{text}; it serves other services than its files say",
            "if that is not by --service: relay-agent reload",
        )
    return ok(text)


async def _settled(context: Context) -> AgentStatus:
    """The status of the running agent; one that was just started or cut off is given a moment."""
    status = context.running
    with trio.move_on_after(SETTLE_TIMEOUT):
        while not status["attached"] or any(x["state"] == "asked" for x in status["services"]):
            await trio.sleep(POLL_INTERVAL)
            # The answer is from memory and over a socket of this machine, so this takes no time.
            status = ask_status(context.state) or status
    context.running = status
    return status


async def _check_visit(context: Context) -> Finding:
    """From outside: through the public port, the relay, the session and the agent to the target."""
    host = context.running["link"]["address"].rpartition(":")[0].strip("[]")
    found, wrong = [], []
    # Where the target does not answer, a visit would say nothing about the way to it.
    for service in (one for one in context.services if one.name not in context.silent):
        port, deadline = service.port or 0, trio.current_time() + VISIT_TIMEOUT
        if not _is_ssh(service):
            try:
                (await dial([HostPort(host, port)], deadline=deadline)).close()
                found.append(f"port {port} is open")
            except DialFailed as exc:
                wrong.append(str(exc))
            continue
        try:
            banner = await read_banner(host, port, deadline, greeting=_GREETING)
            found.append(f"port {port} shows {banner}")
        except NoBanner as exc:
            wrong.append(str(exc))
    if not found and not wrong:
        return note("not tried, as no target answers", "mend that first")
    text = "; ".join(found + wrong)
    if not wrong:
        return ok(text)
    unreached = any(why in one for one in wrong for why in ("refused", "no answer", "unreachable"))
    return failed(text, _OPEN_PORT if unreached else _TURNED_AWAY)


_OPEN_PORT: Final = (
    "open the port in the firewall of the VPS and at its provider, or ignore this if only the"
    " network here blocks it"
)
_TURNED_AWAY: Final = (
    "the relay lets nobody in from here: relay-server status on the VPS counts whom it refused and"
    " why (its guard, or what allow, deny or relay-server restrict say)"
)


STEPS: Final[tuple[Step[Context], ...]] = (
    Step("enrolment", _check_enrolment),
    Step("agent", _check_agent, needs=("enrolment",)),
    Step("buffers", _check_buffers),
    Step("target", _check_target, needs=("enrolment",)),
    Step("name", check_name, needs=("enrolment",)),
    Step("route", check_route, needs=("name",)),
    Step("connect", check_connect, needs=("name",)),
    Step("handshake", check_handshake, needs=("connect",)),
    Step("key", check_key, needs=("handshake",)),
    Step("ports", check_ports, needs=("key",)),
    Step("clock", check_clock),
    Step("link", _check_link, needs=("agent",)),
    Step("visit", _check_visit, needs=("ports", "link")),
)
