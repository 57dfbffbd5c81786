"""`relay-agent run`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import trio

from protocol.process import logs
from protocol.process.state import StateFolder
from relay_agent.commands.options import read_services
from relay_agent.config import load_config, settle
from relay_agent.identity.agent_keys import load_agent_keys, save_accepted
from relay_agent.identity.enrolment import LOCK, load_enrolment, load_key, save_relay
from relay_agent.link.relay_dialer import RelayDialer
from relay_agent.process import run
from relay_agent.process.reload import Reload, Settings


def command(options: argparse.Namespace, state: StateFolder) -> None:
    settings = _read(options, state)
    logs.configure(settings.config.log_level, settings.config.log_format)
    state.ensure()
    with state.lock(LOCK):
        keys = RelayDialer(
            load_agent_keys(state),  # inside: nobody rotates them meanwhile
            settings.relay,
            remember=partial(save_relay, state),
            remember_own=partial(save_accepted, state),
        )
        rereading = partial(Reload, settings, lambda: _read(options.again(), state))
        trio.run(run.run, settings.config, settings.services, keys, state, rereading)


def _read(options: argparse.Namespace, state: StateFolder) -> Settings:
    """Files under the options, as of now. Raises ConfigError or StateError."""
    wanted = read_services(options.service)
    config = load_config(state, options.config)
    enrolment = load_enrolment(state)
    services = config.services_over(enrolment.services)
    services = settle(wanted, services, where="--service {}: public port")
    config = replace(
        config,
        log_level=options.log_level or config.log_level,
        log_format=options.log_format or config.log_format,
    )
    public_key = load_key(state).public
    return Settings(config=config, services=services, relay=enrolment.relay, public_key=public_key)
