"""The steps of `doctor` on the way to the relay, from its name to what it grants this agent."""

from __future__ import annotations

import secrets
import socket
import time
from typing import Final

import trio

from protocol.errors import DenialCode, LinkDenied, LinkLost
from protocol.process.address import is_address
from protocol.process.cli.checks import WRITTEN, Finding, failed, note, ok
from protocol.process.cli.text import milliseconds
from protocol.wire.hello import INQUIRY, Hello
from protocol.wire.identifiers import ID_SIZE, InstanceId
from relay_agent.doctor.context import Context
from relay_agent.link.attach import SOFTWARE
from relay_agent.link.relay_dialer import RelayDialer
from relay_agent.net.dial import DialFailed, dial, look_up
from relay_agent.net.routes import Netlink

# A sound resolver has answered by then.
NAME_TIMEOUT: Final = 5.0
# TCP takes one round trip, or two SYNs more on a bad path.
CONNECT_TIMEOUT: Final = 5.0
# Seconds: more than the answer's time on its way, so the two clocks do differ.
_SAME_TIME: Final = 60


async def check_name(context: Context) -> Finding:
    found, missing = [], []
    for host in context.enrolment.relay.hosts:
        name = host.host
        if is_address(name):
            context.addresses.append(name)
            found.append(f"{name} is an address")
            continue
        with trio.move_on_after(NAME_TIMEOUT) as scope:
            try:
                addresses = [str(address[0]) for _, address in await look_up(name)]
            except (OSError, ValueError) as exc:
                missing.append(f"{name}: {getattr(exc, 'strerror', None) or exc}")
                continue
            context.addresses += addresses
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


async def check_route(context: Context) -> Finding:
    try:
        netlink = Netlink()
    except OSError as exc:
        return note(f"the kernel does not tell ({exc.strerror or exc})")
    try:
        routes = {address: netlink.route_to(address) for address in context.addresses}
    finally:
        netlink.close()
    found = []
    for address, route in routes.items():
        if route is not None:
            gateway = f" by way of {route.gateway}" if route.gateway else ""
            interface = _interface(route.interface)
            found.append(f"{address}{gateway} on {interface}, from {route.source}")
    if not found:
        return failed(
            f"no route to {', '.join(routes)}",
            "the uplink is down: look at the cable, the Wi-Fi or the dial-up, and at: ip route",
        )
    return ok("; ".join(found))


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # it has gone meanwhile
        return f"interface {index}"


async def check_connect(context: Context) -> Finding:
    found, missing = [], []
    for host in context.enrolment.relay.hosts:
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
        return failed(text, _NOT_LISTENING if refused else _NO_ANSWER)
    return note(text, "the relay is reached, but not by every host") if missing else ok(text)


_NOT_LISTENING: Final = (
    "the machine is there, but no relay listens on that port: start it on the VPS; where it does"
    " listen, and whether a firewall is in the way, says relay-server doctor there"
)
_NO_ANSWER: Final = (
    "a firewall drops it: open the port on the VPS and at its provider; if the network here blocks"
    " it, let the relay listen on 443 too (relay-server run --listen)"
)


async def check_handshake(context: Context) -> Finding:
    hello = Hello(
        instance=InstanceId(secrets.token_bytes(ID_SIZE)),
        epoch=1,
        software=SOFTWARE,
        features=(INQUIRY,),
        limits=context.config.limits(),
    )
    began = trio.current_time()
    try:
        # As `run` does, also while a key is being rotated; but what is learned is not saved.
        dialer = RelayDialer(
            context.agent_keys,
            context.enrolment.relay,
            save_keys=lambda _: None,
            save_relay=lambda _: None,
        )
        link, context.welcome = await dialer.connect(lambda: hello)
    except LinkDenied as exc:
        context.denial = exc
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
        f"{context.welcome.software} proved to be the relay that this agent trusts, in {took}"
    )


async def check_key(context: Context) -> Finding:
    if context.welcome is not None:
        return ok(f"the relay knows this agent as {context.welcome.name}")
    assert context.denial is not None  # noqa: S101 - the handshake ends with one of the two
    return failed(f"the relay refuses: {context.denial}", _DENIED.get(context.denial.code, _BUSY))


_DENIED: Final[dict[int, str]] = {
    DenialCode.UNKNOWN_AGENT: "on the VPS: relay-server invite NAME; here: relay-agent join",
    DenialCode.REVOKED: "if that was a mistake, on the VPS: relay-server invite NAME; here:"
    " relay-agent join",
}
_BUSY: Final = "the relay cannot take it now; on the VPS, its log and relay-server doctor say why"


async def check_ports(context: Context) -> Finding:
    granted = context.welcome.ports if context.welcome is not None else ()
    wrong = [one for one in context.services if one.port not in granted]
    shown = ", ".join(map(str, granted)) or "none"
    if wrong:
        wanted = ", ".join(f"{one.name} wants port {one.port}" for one in wrong)
        return failed(
            f"{wanted}, but granted are: {shown}",
            "choose a granted port in agent.toml, or on the VPS: relay-server invite"
            f" {context.enrolment.name} --port N; here: relay-agent join",
        )
    return ok(f"{shown} granted, for {', '.join(one.name for one in context.services)}")


async def check_clock(context: Context) -> Finding:
    now = time.time()
    text = f"it says {_date(now)}"
    relays = None if context.welcome is None else context.welcome.clock
    if relays is not None and abs(now - relays) > _SAME_TIME:
        return note(f"{text}, the relay's says {_date(relays)}", _SET_CLOCK)
    if now < WRITTEN:
        return note(f"{text}, which is past", _SET_CLOCK)
    return ok(text if relays is None else f"{text}, as the relay's")


_SET_CLOCK: Final = (
    "the agent and its keys do not need a clock; only its log is easier to read once NTP has set it"
)


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
    except (OverflowError, ValueError):  # the relay may send any number
        return "something that is no date"
