"""What several commands do with their options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from protocol.process import logs
from protocol.process.config import ConfigError
from relay_agent.config import AgentConfig, check_distinct
from relay_agent.services.service import Service, parse_service

# Two agents with one key would take turns at the relay, so one state folder has one user.


def configure_logs(options: argparse.Namespace, config: AgentConfig, level: str) -> None:
    logs.configure(options.log_level or level, options.log_format or config.log_format)


def read_services(texts: Sequence[str]) -> list[Service]:
    """What `--service` was given. Raises ConfigError."""
    try:
        services = [parse_service(text) for text in texts]
    except ValueError as error:
        raise ConfigError(f"--service: {error}") from None
    check_distinct(services)
    return services
