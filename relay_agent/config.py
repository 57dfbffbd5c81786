"""The user's options, from STATE/agent.toml: everything has a default, the file itself too.

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from protocol.process.address import HostPort, parse_host_port
from protocol.process.config import (
    ConfigError,
    between,
    load,
    parse_count,
    parse_duration,
    parse_size,
)
from protocol.session.session import SessionOptions
from protocol.wire.hello import MAX_SESSION_WINDOW, MAX_STREAM_WINDOW, MIN_WINDOW, Limits
from relay_agent import CONFIG_FILE
from relay_agent.services.proxy_protocol import Version
from relay_agent.services.service import Service, parse_name, parse_service

if TYPE_CHECKING:
    from protocol.process.state import StateFolder
    from protocol.session.replay import ReplayCap
    from protocol.wire.buffers import BufferPool


def _option(default: Any, parse: Callable[[object], object]) -> Any:
    return field(default=default, metadata={"parse": parse})


def _window(default: int, largest: int) -> Any:
    """What a hello may carry, checked here so that the user hears of it and not the relay."""
    smallest = f"{MIN_WINDOW // 2**10}KiB"
    return _option(default, between(parse_size, smallest, f"{largest // 2**20}MiB"))


def _target(value: object) -> HostPort:
    if isinstance(value, str):
        return parse_host_port(value)
    raise ValueError(f"expected HOST:PORT in quotes, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTable:
    """A `[services.NAME]`; without `port` the one that `join` settled for this name."""

    target: HostPort = field(metadata={"parse": _target, "expects": "HOST:PORT in quotes"})
    port: int | None = field(default=None, metadata={"parse": between(parse_count, 1, 65535)})
    # Tell the target who the visitor is, before its first byte. Only for a target that expects it.
    proxy_protocol: Version | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    # What was sent and not yet acked, and what waits to be sent. 4 MiB carry 50 Mbit/s over a path
    # of 600 ms, and are what a router can spare; below the minimum a bulk stream would stutter.
    replay: int = _option(4 * 2**20, between(parse_size, "256KiB", "256MiB"))
    # Open at once. ssh needs one a visitor; `-D` for a browser runs inside of one. Each costs a
    # socket here, and routers commonly allow 1,024 of them a process.
    max_streams: int = _option(256, between(parse_count, 1, 65535))
    # Enough for 16 Mbit/s at 120 ms from the first byte on; grown up to the maximum on demand.
    stream_window: int = _window(256 * 2**10, MAX_STREAM_WINDOW)
    # 2 MiB carry 100 Mbit/s at 160 ms, more than such a router encrypts.
    stream_window_max: int = _window(2 * 2**20, MAX_STREAM_WINDOW)
    # What all streams together may have on their way to slow targets: the memory they can cost.
    session_window: int = _window(4 * 2**20, MAX_SESSION_WINDOW)
    # The relay's default as well: who has waited this long at a dead shell has left.
    detached_keep: float = _option(15 * 60.0, between(parse_duration, "0s", "7d"))

    # Replace those that `join` settled.
    services: dict[str, ServiceTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stream_window > self.stream_window_max:
            raise ValueError("stream_window: expected at most stream_window_max")
        for name in self.services:
            try:
                parse_name(name)
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
