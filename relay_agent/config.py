"""The user's options, from STATE/agent.toml. Each has a default, and the file may be missing.

    detached_keep = "30m"

    [services.ssh]
    target = "192.168.1.1:22"
    port = 11111

    [services.web]
    target = "127.0.0.1:80"
    port = 11112
    proxy_protocol = "v2"

The defaults are for a router with 128 MB of memory. Sizes and durations are as a user writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from protocol.process.address import HostPort, parse_host_port
from protocol.process.config import ConfigError, count, duration, load, setting, size
from protocol.session.session import SessionOptions
from protocol.wire.hello import MAX_SESSION_WINDOW, MAX_STREAM_WINDOW, MIN_WINDOW, Limits
from relay_agent import CONFIG_FILE
from relay_agent.services.proxy_protocol import Version
from relay_agent.services.service import Service, parse_service, parse_service_name

if TYPE_CHECKING:
    from protocol.process.state import StateFolder
    from protocol.session.replay import ReplayCap
    from protocol.wire.buffers import BufferPool


# What a hello may carry, checked here so that the user learns of it and not the relay.
_SMALLEST_WINDOW: Final = f"{MIN_WINDOW // 2**10}KiB"
_LARGEST_STREAM_WINDOW: Final = f"{MAX_STREAM_WINDOW // 2**20}MiB"
_LARGEST_SESSION_WINDOW: Final = f"{MAX_SESSION_WINDOW // 2**20}MiB"


def _target(value: object) -> HostPort:
    if isinstance(value, str):
        return parse_host_port(value)
    raise ValueError(f"expected HOST:PORT in quotes, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTable:
    """A `[services.NAME]`."""

    target: HostPort = field(
        metadata={
            "parse": _target,
            "expects": "HOST:PORT in quotes",
            "syntax": '"HOST:PORT"',
            "meaning": "The server behind the service, as this machine reaches it.",
        }
    )
    port: int | None = count(
        None,
        1,
        65535,
        "The public port at the relay. The invitation must have granted it.",
        absent="the port that `join` settled for a service of this name",
    )
    proxy_protocol: Version | None = setting(
        None,
        "Sends the PROXY header of HAProxy, in this version, so that the target learns the"
        " visitor's address. Only for a target that expects it; never for an SSH server.",
        absent="no header",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "How much to log. `--log-level` has precedence."
    )
    log_format: Literal["text", "json"] = setting(
        "text", "Text for people, JSON for programs. `--log-format` has precedence."
    )
    replay: int = size(
        "4MiB",
        "256KiB",
        "256MiB",
        "Memory for frames that wait to be sent or to be acked. 4 MiB carry 50 Mbit/s over a path"
        " of 600 ms, and are what a router can spare. With less than the minimum a copy would"
        " stutter.",
    )
    max_streams: int = count(
        256,
        1,
        65535,
        "Visitors connected at once, over all services. Each costs a socket here, and routers"
        " commonly allow a process 1,024 of them.",
    )
    stream_window: int = size(
        "256KiB",
        _SMALLEST_WINDOW,
        _LARGEST_STREAM_WINDOW,
        "How much the relay may send ahead for one stream at first. Enough for 16 Mbit/s over"
        " 120 ms; it grows when that is too little.",
    )
    stream_window_max: int = size(
        "2MiB",
        _SMALLEST_WINDOW,
        _LARGEST_STREAM_WINDOW,
        "How far that may grow. 2 MiB carry 100 Mbit/s over 160 ms, which is more than a router"
        " encrypts.",
    )
    session_window: int = size(
        "4MiB",
        _SMALLEST_WINDOW,
        _LARGEST_SESSION_WINDOW,
        "How much the relay may send ahead for all streams together: the memory that slow targets"
        " can cost.",
    )
    detached_keep: float = duration(
        "15m",
        "0s",
        "7d",
        "How long streams stay open without a link to the relay. A user who has waited longer has"
        " closed the terminal; the relay's default is the same.",
    )

    # Replace those that `join` settled.
    services: dict[str, ServiceTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stream_window > self.stream_window_max:
            raise ValueError("stream_window: expected at most stream_window_max")
        for name in self.services:
            try:
                parse_service_name(name)
            except ValueError as error:
                raise ValueError(f"services: {error}") from None

    def limits(self) -> Limits:
        """What the relay is told in each hello."""
        return Limits(
            streams=self.max_streams,
            stream_window=self.stream_window,
            session_window=self.session_window,
        )

    def session_options(self, cap: ReplayCap, pool: BufferPool) -> SessionOptions:
        return SessionOptions(
            limits=self.limits(),
            window_limit=self.stream_window_max,
            replay_limit=self.replay,
            replay_cap=cap,
            pool=pool,
        )

    def services_over(self, joined: tuple[Service, ...]) -> tuple[Service, ...]:
        """What to publish instead of what `join` settled. Raises ConfigError."""
        chosen = [
            Service(name, table.target, table.port, table.proxy_protocol)
            for name, table in self.services.items()
        ]
        return settle(chosen, joined, where=f"{CONFIG_FILE}: services.{{}}.port")


def settle(
    services: Sequence[Service], joined: tuple[Service, ...], *, where: str
) -> tuple[Service, ...]:
    """`services`, or if there are none what `join` settled, which also fills in public ports.

    `where` says at what to look for the port of the service whose name goes into it. Raises
    ConfigError.
    """
    ports = {service.name: service.port for service in joined}
    settled = []
    for service in services:
        port = service.port or ports.get(service.name)
        if port is None:
            raise ConfigError(
                f"{where.format(service.name)}: missing; expected one of the ports granted by the"
                " invitation"
            )
        settled.append(replace(service, port=port))
    check_distinct(settled)
    return tuple(settled) or joined


def load_config(state: StateFolder, path: Path | None = None) -> AgentConfig:
    """Read the file at `path`, which then must exist, or else the state folder's, if any."""
    if path is not None:
        return load(AgentConfig, path, required=True)
    return load(AgentConfig, state.path / CONFIG_FILE, required=False)


def parse_services(texts: Sequence[str]) -> list[Service]:
    """What `--service` was given. Raises ConfigError."""
    try:
        services = [parse_service(text) for text in texts]
    except ValueError as error:
        raise ConfigError(f"--service: {error}") from None
    check_distinct(services)
    return services


def check_distinct(services: Sequence[Service]) -> None:
    """Refuse a name or a public port given twice: one of the two could never be published."""
    names: set[str] = set()
    ports: dict[int, str] = {}
    for service in services:
        if service.name in names:
            raise ConfigError(f"service {service.name} is given twice; expected distinct names")
        names.add(service.name)
        if service.port is None:
            continue
        if service.port in ports:
            raise ConfigError(
                f"services {ports[service.port]} and {service.name} both ask for port"
                f" {service.port}; expected a port each"
            )
        ports[service.port] = service.name
