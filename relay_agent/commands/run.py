"""`relay-agent run`."""

from __future__ import annotations

import argparse
from functools import partial

import trio

from protocol.process.state import StateFolder
from relay_agent import agent
from relay_agent.commands.options import LOCK_FILE, configure_logs, read_services
from relay_agent.config import load_config, settle
from relay_agent.enrolment import load_enrolment, load_key, save_relay
from relay_agent.keys import Keys


def command(options: argparse.Namespace, state: StateFolder) -> None:
    wanted = read_services(options.service)
    config = load_config(state, options.config)
    configure_logs(options, config, config.log_level)
    enrolment = load_enrolment(state)
    state.ensure()
    key = load_key(state)
    services = config.services_over(enrolment.services)
    services = settle(wanted, services, where="--service {}: public port")
    with state.lock(LOCK_FILE):
        keys = Keys(key, enrolment.relay, remember=partial(save_relay, state))
        trio.run(agent.run, config, services, keys, state)
