"""`relay-agent doctor`: every step of the way from here to a visitor, and what is wrong with it.

It works beside a running agent and cannot disturb it: to the relay it says who it is and that it
only asks (INQUIRY), so no session is touched, and what concerns the session it asks the running
agent over its control socket.
"""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from protocol.errors import DenialCode, LinkDenied, LinkLost
from protocol.hello import ID_SIZE, INQUIRY, Hello, Welcome
from protocol.process.address import HostPort, is_address, parse_host_port
from protocol.process.ask import SOCKET, ask
from protocol.process.command import CommandFailed
from protocol.process.config import ConfigError
from protocol.process.examination import Finding, Step, failed, note, ok
from protocol.process.layout import milliseconds, span
from protocol.process.limits import small_buffers
from protocol.process.state import StateError
from relay_agent.attachment import SOFTWARE
from relay_agent.commands.options import LOCK_FILE
from relay_agent.config import AgentConfig, load_config
from relay_agent.dial import DialFailed, dial, look_up
from relay_agent.enrolment import Enrolment, load_enrolment
from relay_agent.join import VISIT_TIMEOUT, how_to_start
from relay_agent.keys import Keys
from relay_agent.netlink import Netlink
from relay_agent.own import OwnKeys, load_own
from relay_agent.services import BANNER_TIMEOUT, NoBanner, Service, read_banner

if TYPE_CHECKING:
    from protocol.process.state import StateFolder

# A sound resolver has answered by then.
NAME_TIMEOUT: Final = 5.0
# TCP takes one flight, or two SYNs more on a bad path.
CONNECT_TIMEOUT: Final = 5.0
# For one that has just begun, or to attach again after a cut, and for what the relay says about its
# ports.
SETTLE_TIMEOUT: Final = 3.0
_GLANCE: Final = 0.2
# Beyond the way of the answer, what is odd about two clocks.
_SAME_TIME: Final = 60
# No clock that runs right is before this software was written (2025-12-01).
_WRITTEN: Final = 1_764_547_200
# As an SSH client begins: the relay may hold who is silent, and refuse who is something else.
_GREETING: Final = b"SSH-2.0-ssh_relay_doctor\r\n"


@dataclass
class Patient:
    """What is known so far; each step may add to it."""

    state: StateFolder
    config_file: Path | None = None
    config: AgentConfig = field(default_factory=AgentConfig)
    running: dict[str, Any] | None = None  # what the running agent said last
    addresses: list[str] = field(default_factory=list)  # of the relay, which this machine may dial
    welcome: Welcome | None = None
    denial: LinkDenied | None = None
    enrolment: Enrolment = field(init=False)
    own: OwnKeys = field(init=False)
    filed: tuple[Service, ...] = ()  # as the files say
    services: tuple[Service, ...] = ()  # as the running agent serves them, if there is one
    silent: set[str] = field(default_factory=set)  # the services whose target does not answer


async def _check_enrolment(patient: Patient) -> Finding:
    try:
        patient.config = load_config(patient.state, patient.config_file)
        patient.enrolment = load_enrolment(patient.state)
        patient.own = load_own(patient.state)
        patient.filed = patient.config.services_over(patient.enrolment.services)
        patient.services = patient.filed
    except ConfigError as exc:
        return failed(str(exc), "once that is done, run this again")
    except StateError as exc:
        return failed(str(exc), "once that is done, run this again, as the agent's user")
    hosts = ", ".join(map(str, patient.enrolment.relay.hosts))
    return ok(f"this is {patient.enrolment.name}, whose relay is {hosts}")


async def _check_agent(patient: Patient) -> Finding:
    """Whether one runs here. Its link is another step: the way to the relay comes first."""
    locked = ""
    with trio.move_on_after(SETTLE_TIMEOUT):
        while True:
            try:
                patient.running = ask(patient.state.path / SOCKET, "status")
            except CommandFailed as exc:
                return failed(str(exc), f"look at its log, and start it anew: {how_to_start()}")
            if patient.running is not None:
                # It may have been given others as options, or not have read the files again.
                patient.services = _served(patient.running) or patient.filed
                return ok(f"an agent runs here for {span(patient.running['age'])}")
            try:
                with patient.state.lock(LOCK_FILE):
                    return failed("no agent runs here", f"start it: {how_to_start()}")
            except StateError as exc:
                locked = str(exc)
            await trio.sleep(_GLANCE)
    return failed(
        f"no agent answers here, but one may run: {locked}",
        f"its log says why (no-control-socket); once that is put right: {how_to_start()}",
    )


def _served(status: dict[str, Any]) -> tuple[Service, ...]:
    return tuple(
        Service(one["service"], parse_host_port(one["target"]), one["port"])
        for one in status["services"]
    )


async def _check_name(patient: Patient) -> Finding:
    found, missing = [], []
    for host in patient.enrolment.relay.hosts:
        name = host.host
        if is_address(name):
            patient.addresses.append(name)
            found.append(f"{name} is an address")
            continue
        with trio.move_on_after(NAME_TIMEOUT) as scope:
            try:
                addresses = [str(address[0]) for _, address in await look_up(name)]
            except (OSError, ValueError) as exc:
                missing.append(f"{name}: {getattr(exc, 'strerror', None) or exc}")
                continue
            patient.addresses += addresses
            found.append(f"{name} is {', '.join(dict.fromkeys(addresses))}")
        if scope.cancelled_caught:
            missing.append(f"{name}: no answer from the resolver within {NAME_TIMEOUT:g} s")
    text = "; ".join(dict.fromkeys(found + missing))
    if not found:
        return failed(
            text,
            "if other names resolve here, this one is wrong or its owner's DNS is down; if none"
            " does, the uplink is down, or /etc/resolv.conf names a server that does not answer",
        )
    return note(text, "the other hosts of the relay are tried meanwhile") if missing else ok(text)


async def _check_route(patient: Patient) -> Finding:
    try:
        netlink = Netlink()
    except OSError as exc:
        return note(f"the kernel does not tell ({exc.strerror or exc})")
    try:
        ways = {address: netlink.way_to(address) for address in patient.addresses}
    finally:
        netlink.close()
    found = []
    for address, way in ways.items():
        if way is not None:
            gateway = f" by way of {way.gateway}" if way.gateway else ""
            found.append(f"{address}{gateway} on {_interface(way.interface)}, from {way.source}")
    if not found:
        return failed(
            f"no route to {', '.join(ways)}",
            "the uplink is down: look at the cable, the Wi-Fi or the dial-up, and at: ip route",
        )
    return ok("; ".join(found))


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # gone meanwhile
        return f"interface {index}"


async def _check_connect(patient: Patient) -> Finding:
    found, missing = [], []
    for host in patient.enrolment.relay.hosts:
        began = trio.current_time()
        try:
            sock = await dial([host], deadline=began + CONNECT_TIMEOUT)
        except DialFailed as exc:
            missing.append(str(exc))
            continue
        took = milliseconds(trio.current_time() - began)
        with sock:
            found.append(f"{host} answers from {sock.getpeername()[0]} in {took}")
    text = "; ".join(found + missing)
    if not found:
        refused = all("refused" in one for one in missing)
        return failed(text, _NOBODY_LISTENS if refused else _NO_ANSWER)
    return note(text, "the relay is reached, but not by every host") if missing else ok(text)


_NOBODY_LISTENS: Final = (
    "the machine is there, but no relay listens on that port: start it on the VPS; where it does"
    " listen, and whether a firewall is in the way, says relay-server doctor there"
)
_NO_ANSWER: Final = (
    "a firewall drops it: open the port on the VPS and at its provider; if the network here blocks"
    " it, let the relay listen on 443 too (relay-server run --listen)"
)


async def _check_handshake(patient: Patient) -> Finding:
    hello = Hello(
        instance=secrets.token_bytes(ID_SIZE),
        epoch=1,
        software=SOFTWARE,
        features=(INQUIRY,),
        limits=patient.config.limits(),
    )
    began = trio.current_time()
    try:
        # As `run` does: also where one of the two keys is being rotated. What is learned of them is
        # not saved here.
        keys = Keys(
            patient.own,
            patient.enrolment.relay,
            remember=lambda _: None,
            remember_own=lambda _: None,
        )
        link, patient.welcome = await keys.attach(lambda: hello)
    except LinkDenied as exc:
        patient.denial = exc
        if exc.code == DenialCode.VERSION:
            return failed(str(exc), "install the same version of ssh-relay on both sides")
        return ok("the relay has the key that this agent trusts")
    except LinkLost as exc:
        return failed(
            str(exc),
            "something else listens there, or the relay was set up anew and has another key: then"
            " join again with a new invitation; too many failed attempts from here are refused as"
            " well, for a minute",
        )
    link.close()
    took = milliseconds(trio.current_time() - began)
    return ok(
        f"{patient.welcome.software} proved to be the relay that this agent trusts, in {took}"
    )


async def _check_key(patient: Patient) -> Finding:
    if patient.welcome is not None:
        return ok(f"the relay knows this agent as {patient.welcome.name}")
    assert patient.denial is not None  # noqa: S101 - the handshake has one of both
    return failed(f"the relay refuses: {patient.denial}", _DENIED.get(patient.denial.code, _BUSY))


_DENIED: Final[dict[int, str]] = {
    DenialCode.UNKNOWN_AGENT: "on the VPS: relay-server invite NAME; here: relay-agent join",
    DenialCode.REVOKED: "if that was a mistake, on the VPS: relay-server invite NAME; here:"
    " relay-agent join",
}
_BUSY: Final = "the relay cannot take it now; on the VPS, its log and relay-server doctor say why"


async def _check_ports(patient: Patient) -> Finding:
    granted = patient.welcome.ports if patient.welcome is not None else ()
    wrong = [one for one in patient.services if one.port not in granted]
    shown = ", ".join(map(str, granted)) or "none"
    if wrong:
        wanted = ", ".join(f"{one.name} wants port {one.port}" for one in wrong)
        return failed(
            f"{wanted}, but granted are: {shown}",
            "choose a granted port in agent.toml, or on the VPS: relay-server invite"
            f" {patient.enrolment.name} --port N; here: relay-agent join",
        )
    return ok(f"{shown} granted, for {', '.join(one.name for one in patient.services)}")


async def _check_target(patient: Patient) -> Finding:
    """The same as `join` did: an SSH server shows a banner, another one answers."""
    found, wrong = [], []
    for service in patient.services:
        deadline = trio.current_time() + BANNER_TIMEOUT
        if not _is_ssh(service):
            try:
                (await dial([service.target], deadline=deadline)).close()
                found.append(f"{service.name}: {service.target} answers")
            except DialFailed as exc:
                wrong.append(f"{service.name}: {exc}")
                patient.silent.add(service.name)
            continue
        try:
            banner = await read_banner(service.target.host, service.target.port, deadline)
            found.append(f"{service.name}: {service.target} shows {banner}")
        except NoBanner as exc:
            wrong.append(f"{service.name}: {exc}")
            patient.silent.add(service.name)
    text = "; ".join(found + wrong)
    return failed(text, _START_TARGET) if wrong else ok(text)


_START_TARGET: Final = (
    "start that server (on OpenWrt: service dropbear start), or name its address and port in"
    " agent.toml"
)


def _is_ssh(service: Service) -> bool:
    return "ssh" in service.name


async def _check_clock(patient: Patient) -> Finding:
    now = time.time()
    text = f"it says {_date(now)}"
    relays = None if patient.welcome is None else patient.welcome.clock
    if relays is not None and abs(now - relays) > _SAME_TIME:
        return note(f"{text}, the relay's says {_date(relays)}", _SET_CLOCK)
    if now < _WRITTEN:
        return note(f"{text}, which is past", _SET_CLOCK)
    return ok(text if relays is None else f"{text}, as the relay's")


_SET_CLOCK: Final = (
    "the agent and its keys do not need a clock; only its log is easier to read once NTP has set it"
)


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
    except (OverflowError, ValueError):  # it may be the relay's to say
        return "something that is no date"


async def _check_buffers(patient: Patient) -> Finding:
    wanted = min(patient.config.stream_window_max, patient.config.replay)
    small = small_buffers(wanted)
    if not small:
        return ok(f"TCP may have {wanted} bytes under way")
    settings = ", ".join(f"{name} has {most} at most" for name, most in small.items())
    return note(
        f"{settings}, wanted are {wanted}: one stream cannot fill a fast and distant link",
        f"only if you care: raise the third number with sysctl -w {next(iter(small))}",
    )


async def _check_link(patient: Patient) -> Finding:
    """What the running agent says of its own session."""
    status = await _settled(patient)
    if not status["attached"]:
        why = status["failure"] or "it has just begun"
        return failed(
            f"the running agent has no link: {why}",
            "it tries again by itself; the steps above say what is in its way, and if they are all"
            f" well it runs with an older enrolment: {how_to_start()}",
        )
    link = status["link"]
    text = f"attached for {span(link['age'])}, round trip {milliseconds(link['rtt'])}"
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
        for services in (_served(status), patient.filed)
    )
    if served != filed:
        return note(
            f"{text}; it serves other services than its files say",
            "if that is not by --service: relay-agent reload",
        )
    return ok(text)


async def _settled(patient: Patient) -> dict[str, Any]:
    """One that has just begun, or was cut, needs a moment."""
    status = patient.running or {}
    with trio.move_on_after(SETTLE_TIMEOUT):
        while not status["attached"] or any(x["state"] == "asked" for x in status["services"]):
            await trio.sleep(_GLANCE)
            # From memory, over a socket of this machine: it does not keep anything waiting.
            status = ask(patient.state.path / SOCKET, "status") or status
    patient.running = status
    return status


async def _check_visit(patient: Patient) -> Finding:
    """From outside in: through the relay's public port, its session, and to the target."""
    status = patient.running or {}
    host = status["link"]["address"].rpartition(":")[0].strip("[]")
    found, wrong = [], []
    # A visit to a target that does not answer says nothing of the way to it.
    for service in (one for one in patient.services if one.name not in patient.silent):
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


STEPS: Final[tuple[Step[Patient], ...]] = (
    Step("enrolment", _check_enrolment),
    Step("agent", _check_agent, needs=("enrolment",)),
    Step("buffers", _check_buffers),
    Step("target", _check_target, needs=("enrolment",)),
    Step("name", _check_name, needs=("enrolment",)),
    Step("route", _check_route, needs=("name",)),
    Step("connect", _check_connect, needs=("name",)),
    Step("handshake", _check_handshake, needs=("connect",)),
    Step("key", _check_key, needs=("handshake",)),
    Step("ports", _check_ports, needs=("key",)),
    Step("clock", _check_clock),
    Step("link", _check_link, needs=("agent",)),
    Step("visit", _check_visit, needs=("ports", "link")),
)
