"""What `relay-server run` can be told, and what it does unless told otherwise.

The command line has precedence over the file, the file over what is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Final, Literal

from protocol.process.address import HostPort, is_address, parse_host_port
from protocol.process.config import (
    between,
    count,
    duration,
    each,
    load,
    parse_count,
    setting,
    size,
)
from protocol.process.limits import descriptor_limit
from protocol.wire.invitation import MAX_HOSTS
from relay_server import CONFIG_FILE
from relay_server.guard.rules import FORMER_KEYS, GuardTable, Rules, check_patterns, rules_for
from relay_server.net.networks import Admission, Networks, networks_setting, parse_network

DEFAULT_PORT: Final = 7022
# Stands for "the port agents dial" until that is known.
_LINK_PORT: Final = 1


def parse_listen(text: str) -> HostPort:
    """Read `ADDRESS:PORT`. Raises ValueError with what is expected."""
    address = parse_host_port(text, default_port=DEFAULT_PORT)
    if not is_address(address.host):
        raise ValueError(f"expected an address of this machine and a port, not {text!r}")
    return address


def parse_bind(value: object) -> str:
    if isinstance(value, str) and is_address(value):
        return value
    raise ValueError(f"expected an address of this machine, not {value!r}")


def parse_port_range(value: object) -> range:
    """Read `FIRST-LAST`."""
    first, _, last = value.partition("-") if isinstance(value, str) else ("", "", "")
    if all(part.isascii() and part.isdigit() and len(part) <= 5 for part in (first, last)):
        ports = range(int(first), int(last) + 1)
        if ports and ports[0] >= 1 and ports[-1] <= 65535:
            return ports
    raise ValueError(f'expected a range of ports such as "11111-12110", not {value!r}')


@dataclass(frozen=True, slots=True)
class Host:
    """Where invitations tell agents to dial; without a port, the first one of `listen`."""

    host: str
    port: int | None

    def at(self, port: int) -> HostPort:
        return HostPort(self.host, self.port or port)


def parse_host(text: str) -> Host:
    """Read `NAME[:PORT]`. Raises ValueError with what is expected."""
    address = parse_host_port(text, default_port=_LINK_PORT)
    given = text not in (address.host, f"[{address.host}]")
    return Host(address.host, address.port if given else None)


_NO_NETWORKS: Final = Networks()
_THIS_MACHINE: Final = Networks(map(parse_network, ("127.0.0.1", "::1")))
_MOST_LISTEN: Final = 8  # a bound on mistakes, not on use


def parse_metrics_listen(value: object) -> HostPort:
    """Read `ADDRESS` or `ADDRESS:PORT`."""
    address = parse_host_port(value, default_port=9111) if isinstance(value, str) else None
    if address is None or not is_address(address.host):
        raise ValueError(f'expected an address such as "127.0.0.1:9111", not {value!r}')
    return address


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsTable:
    listen: HostPort | None = setting(
        None,
        "Where Prometheus asks for the numbers. Whoever reaches that address may read them."
        " Without a port it is 9111.",
        parse=parse_metrics_listen,
        syntax='"ADDRESS:PORT"',
        absent="nowhere",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    former_keys: ClassVar = FORMER_KEYS

    listen: tuple[HostPort, ...] = setting(
        (HostPort("::", DEFAULT_PORT),),
        "Where agents dial in. `--listen` has precedence.",
        parse=each(parse_listen, least=1, most=_MOST_LISTEN),
        syntax=f'array of 1 to {_MOST_LISTEN} `"ADDRESS:PORT"`',
    )
    hosts: tuple[Host, ...] = setting(
        (),
        "Where invitations tell agents to dial, in this order; without a port, at the first of"
        " `listen`. Once given it is remembered. `--host` has precedence.",
        parse=each(parse_host, least=1, most=MAX_HOSTS),
        syntax=f'array of 1 to {MAX_HOSTS} `"NAME"` or `"NAME:PORT"`',
        absent="what was given last",
    )
    bind: str | None = setting(
        None,
        "The address that public ports open on. `--bind` has precedence.",
        parse=parse_bind,
        syntax='"ADDRESS"',
        absent="all addresses",
    )
    ports: range = setting(
        range(11111, 12111),
        "Where `invite` takes a public port from if none is given. Easy to remember, enough for a"
        " fleet, and below the ports that Linux takes for outgoing connections (from 32768).",
        parse=parse_port_range,
        syntax='"FIRST-LAST"',
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "How much to log. `--log-level` has precedence."
    )
    log_format: Literal["text", "json"] = setting(
        "text", "Text for people, JSON for programs. `--log-format` has precedence."
    )
    metrics: MetricsTable = field(default_factory=MetricsTable)

    # Before authentication

    handshake_timeout: float = duration(
        "5s",
        "1s",
        "60s",
        "How long a connection may take to prove that it is an agent. A slow router on a bad path"
        " needs less than 2 s for the two round trips and key exchanges.",
    )
    half_open: int = count(
        512,
        1,
        65535,
        "Connections that have not proved it yet, all together. Each holds a descriptor and a few"
        " KiB, so it is below 1,024, a usual limit.",
    )
    half_open_per_source: int = count(
        32,
        1,
        65535,
        "Such connections of one source, so that one source cannot take all of them. A fleet"
        " behind one address gets through 32 at a time.",
    )
    attempts_per_source: int = count(
        64,
        1,
        65535,
        "Attempts that a source may make at once before it is refused; those that succeed are not"
        " counted. An agent makes two at most.",
    )
    attempts_per_second: float = setting(
        2,
        "Attempts that a source gets back each second. That slows a scanner down to what does not"
        " fill a log.",
        parse=between(parse_count, 1, 65535),
        syntax="1 to 65535",
    )

    # While an agent is away

    detached_keep: float = duration(
        "15m",
        "0s",
        "7d",
        "How long an agent's streams stay open without a link. A router reboots or redials within"
        " a few minutes; ssh itself would wait longer.",
    )
    detached_keep_idle: float = duration(
        "60s",
        "0s",
        "7d",
        "The same for a session without streams. A new one costs nothing, but resuming spares the"
        " agent publishing again.",
    )
    listener_keep: float = duration(
        "24h",
        "0s",
        "365d",
        "How long public ports stay open without their agent. After that a port is of no use to"
        " visitors, and may be wanted by another program.",
    )
    visitor_wait: float = duration(
        "10s",
        "0s",
        "60s",
        "How long a visitor waits for an agent that is away: longer than the agent's longest"
        " backoff (8 s), shorter than a person's patience.",
    )
    held_visitors: int = count(
        64,
        0,
        4096,
        "Visitors of one agent that wait so. Each holds a descriptor, and more are bots.",
    )

    # Visitors on public ports

    deny: Networks = networks_setting(
        _NO_NETWORKS,
        "Networks whose visitors are refused at all public ports, even if `allow` has them.",
    )
    allow: Networks = networks_setting(
        _NO_NETWORKS,
        "If not empty, only visitors from these networks may come. `relay-agent join` visits its"
        " port from the router's own network, so that must be among them.",
    )
    penalty_exempt: Networks = networks_setting(
        _THIS_MACHINE,
        "Networks whose visitors the guard neither limits by source nor penalizes, as OpenSSH's"
        " PerSourcePenaltyExemptList: programs of the VPS itself, or a front that passes on"
        " visitors of many sources.",
    )
    visitors_per_agent: int | None = count(
        None,
        1,
        2**20,
        "Visitors of one agent together, whatever the guard does with them. Each holds a"
        " descriptor, so one agent's crowd must leave the others theirs.",
        absent="a quarter of the descriptors that the system allows the relay",
    )
    guard: dict[str, GuardTable] = field(default_factory=dict)

    # Memory

    replay: int = size(
        "16MiB",
        "256KiB",
        "1GiB",
        "Memory of one session for frames that wait to be sent or to be acked: what 1 Gbit/s has"
        " under way in 130 ms.",
    )
    replay_total: int = size(
        "512MiB",
        "1MiB",
        "1024GiB",
        "The same for all sessions together: half of a small VPS's memory.",
    )
    max_streams: int = count(
        4096,
        1,
        65535,
        "Streams open at once in one session. Each costs about 1 KiB, and an sshd allows far"
        " fewer.",
    )
    # The bounds of windows are those of the wire.
    stream_window: int = size(
        "256KiB",
        "16KiB",
        "16MiB",
        "How much an agent may send ahead for one stream at first. A shell needs less, and a copy"
        " outgrows it within a few round trips.",
    )
    stream_window_max: int = size(
        "8MiB",
        "16KiB",
        "16MiB",
        "How far that may grow. 200 Mbit/s over 150 ms need 6 MB, as the window is renewed when"
        " half of it is used.",
    )
    session_window: int = size(
        "16MiB",
        "16KiB",
        "256MiB",
        "How much an agent may send ahead for all streams together: two at full speed, or a"
        " thousand slow ones.",
    )

    def __post_init__(self) -> None:
        check_patterns(self.guard)
        if self.stream_window > self.stream_window_max:
            raise ValueError("expected stream_window to be at most stream_window_max")
        if self.replay > self.replay_total:
            raise ValueError("expected replay to be at most replay_total")

    @property
    def admission(self) -> Admission:
        """To all public ports; each may have one of its own besides."""
        return Admission(allow=self.allow, deny=self.deny)

    def rules(self, agent: str, service: str) -> Rules:
        return rules_for(self.guard, agent, service)

    @property
    def most_visitors(self) -> int:
        """Of one agent."""
        return self.visitors_per_agent or max(1, descriptor_limit() // 4)

    @property
    def link_ports(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(address.port for address in self.listen))

    @property
    def dialled(self) -> tuple[HostPort, ...]:
        """`hosts`, complete with ports."""
        return tuple(host.at(self.listen[0].port) for host in self.hosts)


def load_config(
    file: Path | None,
    state_dir: Path,
    *,
    listen: Sequence[HostPort] = (),
    hosts: Sequence[Host] = (),
    bind: str | None = None,
) -> ServerConfig:
    """The configuration from `file`, or from the state folder if None, under the given options."""
    config = load(ServerConfig, file or state_dir / CONFIG_FILE, required=file is not None)
    return replace(
        config,
        listen=tuple(listen) or config.listen,
        hosts=tuple(hosts) or config.hosts,
        bind=bind or config.bind,
    )
