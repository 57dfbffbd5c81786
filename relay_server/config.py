"""What `relay-server run` can be told, and what it does unless told otherwise.

The command line has precedence over the file, the file over what is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar

from protocol.process.address import HostPort, is_address, parse_host_port
from protocol.process.config import (
    between,
    each,
    load,
    parse_count,
    parse_duration,
    parse_size,
)
from protocol.process.limits import descriptor_limit
from protocol.wire.invitation import MAX_HOSTS
from relay_server import CONFIG_FILE
from relay_server.guard.rules import FORMER_KEYS, GuardTable, Rules, check_patterns, rules_for
from relay_server.net.networks import Admission, Networks, parse_network, parse_networks

_T = TypeVar("_T")

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


def _read_by(parse: Callable[[object], object], default: object) -> Any:
    return field(default=default, metadata={"parse": parse})


def _some(parse: Callable[[str], _T], at_most: int) -> Callable[[object], tuple[_T, ...]]:
    parse_all = each(parse)

    def items(value: object) -> tuple[_T, ...]:
        result = parse_all(value)
        if not 1 <= len(result) <= at_most:
            raise ValueError(f"expected 1 to {at_most} items, not {len(result)}")
        return result

    return items


def _duration(default: str, low: str, high: str) -> Any:
    return _read_by(between(parse_duration, low, high), parse_duration(default))


def _size(default: str, low: str, high: str) -> Any:
    return _read_by(between(parse_size, low, high), parse_size(default))


def _count(default: int, low: int, high: int) -> Any:
    return _read_by(between(parse_count, low, high), default)


_NETWORKS: Final = {"parse": parse_networks}
_NOBODY: Final = Networks()
_THIS_MACHINE: Final = Networks(map(parse_network, ("127.0.0.1", "::1")))


def parse_metrics_listen(value: object) -> HostPort:
    """Read `ADDRESS` or `ADDRESS:PORT`."""
    address = parse_host_port(value, default_port=9111) if isinstance(value, str) else None
    if address is None or not is_address(address.host):
        raise ValueError(f'expected an address such as "127.0.0.1:9111", not {value!r}')
    return address


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsTable:
    # Where Prometheus asks; nowhere unless told. Whoever reaches it may read.
    listen: HostPort | None = field(default=None, metadata={"parse": parse_metrics_listen})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    former_keys: ClassVar = FORMER_KEYS

    # Where agents dial in. Eight is a bound on mistakes, not on use.
    listen: tuple[HostPort, ...] = _read_by(_some(parse_listen, 8), (HostPort("::", DEFAULT_PORT),))
    # What invitations tell agents to dial, in that order; remembered, so it may be left out.
    hosts: tuple[Host, ...] = _read_by(_some(parse_host, MAX_HOSTS), ())
    # The address public ports open on; None: all.
    bind: str | None = _read_by(parse_bind, None)
    # Where the ports of agents invited without one come from. Below the range from which kernels
    # take ports for outgoing sockets (32768 on Linux), easy to remember, and enough for a fleet.
    ports: range = _read_by(parse_port_range, range(11111, 12111))

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    metrics: MetricsTable = field(default_factory=MetricsTable)

    # Before authentication

    # Two round trips and two key exchanges of a slow router: under 2 s on the worst of paths.
    handshake_timeout: float = _duration("5s", "1s", "60s")
    # All together. Each holds a descriptor and a few KiB: below the usual limit of 1024.
    half_open: int = _count(512, 1, 65535)
    # One source must not take all of them; a fleet behind one address goes through 32 by 32.
    half_open_per_source: int = _count(32, 1, 65535)
    # Attempts a source may make at once, and gets back a second; successes cost nothing. An agent
    # makes two at most; a scanner is slowed to what does not fill a log.
    attempts_per_source: int = _count(64, 1, 65535)
    attempts_per_second: float = _read_by(between(parse_count, 1, 65535), 2)

    # While an agent is away

    # With open streams: a router reboots or redials in a few minutes; ssh itself would wait longer.
    detached_keep: float = _duration("15m", "0s", "7d")
    # Without, a new session costs nothing; this long, a resume spares the agent publishing again.
    detached_keep_idle: float = _duration("60s", "0s", "7d")
    # A port whose agent is gone for longer is of no use to visitors and may be wanted elsewhere.
    listener_keep: float = _duration("24h", "0s", "365d")
    # Longer than the agent's longest backoff (8 s), shorter than a person's patience.
    visitor_wait: float = _duration("10s", "0s", "60s")
    # Visitors that wait so, for each agent; each holds a descriptor. More are bots.
    held_visitors: int = _count(64, 0, 4096)

    # Visitors on public ports

    # Networks whose visitors are refused, and those that alone may come (without any: all). What is
    # denied stays so though it is allowed. `relay-agent join` visits its port from where it is.
    deny: Networks = field(default=_NOBODY, metadata=_NETWORKS)
    allow: Networks = field(default=_NOBODY, metadata=_NETWORKS)
    # Networks whose visitors the guard neither bounds nor penalizes (PerSourcePenaltyExemptList of
    # OpenSSH): programs of this machine itself, or a front that passes on visitors of many sources.
    penalty_exempt: Networks = field(default=_THIS_MACHINE, metadata=_NETWORKS)
    # Of one agent together, whatever the guard makes of them: each holds a descriptor from accept
    # on. None: a quarter of those that the system allows us, so that one agent's crowd, and even
    # three of them, leave the others their links.
    visitors_per_agent: int | None = _read_by(between(parse_count, 1, 2**20), None)
    # What holds at services with such a name; see rules.py.
    guard: dict[str, GuardTable] = field(default_factory=dict)

    # Memory

    # Queued and unacked frames of a session and direction: what 1 Gbit/s has under way in 130 ms.
    replay: int = _size("16MiB", "256KiB", "1GiB")
    # Of all sessions together: half the memory of a small VPS.
    replay_total: int = _size("512MiB", "1MiB", "1024GiB")
    # Open at once in a session; each costs about 1 KiB, and an sshd allows far fewer.
    max_streams: int = _count(4096, 1, 65535)
    # The bounds of windows are those of the wire.
    # At first: a shell needs less, and bulk outgrows it within a few round trips.
    stream_window: int = _size("256KiB", "16KiB", "16MiB")
    # 200 Mbit/s over 150 ms needs 6 MB when the window is renewed at half.
    stream_window_max: int = _size("8MiB", "16KiB", "16MiB")
    # Two streams at full speed, or a thousand slow ones.
    session_window: int = _size("16MiB", "16KiB", "256MiB")

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
