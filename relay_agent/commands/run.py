"""`relay-agent run`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from protocol.process import logs
from protocol.process.cli.command_line import add_config_option
from protocol.process.state import StateFolder
from relay_agent import CONFIG_FILE
from relay_agent.options import add_service_option

if TYPE_CHECKING:
    from relay_agent.process.reload import Settings

_DESCRIPTION: Final = """\
Stay attached to the relay and publish this machine's services, until SIGTERM
or Ctrl-C. SIGUSR1 says that the network may have changed, SIGHUP that files
have: see "relay-agent reload". An argument @FILE stands for those in FILE, one
a line.
"""
_EXAMPLES: Final = """\
examples:
  relay-agent run
  relay-agent run --log-level debug --log-format json

Options of your own go into agent.toml in the state folder.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    parser.fromfile_prefix_chars = "@"
    add_service_option(parser, "default: those of agent.toml, or else of join")
    add_config_option(parser, CONFIG_FILE)


def run(options: argparse.Namespace, state: StateFolder) -> None:
    import trio

    from relay_agent.identity.agent_keys import load_agent_keys, save_accepted
    from relay_agent.identity.enrolment import LOCK, save_relay
    from relay_agent.link.relay_dialer import RelayDialer
    from relay_agent.process.reload import Reload
    from relay_agent.process.run import serve

    settings = _read(options, state)
    logs.configure(settings.config.log_level, settings.config.log_format)
    state.ensure()
    with state.lock(LOCK):
        dialer = RelayDialer(
            load_agent_keys(state),  # under the lock: `rotate-key` changes the files
            settings.relay,
            save_keys=partial(save_accepted, state),
            save_relay=partial(save_relay, state),
        )
        make_reload = partial(Reload, settings, lambda: _read(options.again(), state))
        trio.run(serve, settings.config, settings.services, dialer, state, make_reload)


def _read(options: argparse.Namespace, state: StateFolder) -> Settings:
    """Files under the options, as of now. Raises ConfigError or StateError."""
    from protocol.wire.identifiers import AgentKey
    from relay_agent.config import load_config, parse_services, settle
    from relay_agent.identity.enrolment import load_enrolment, load_key
    from relay_agent.process.reload import Settings

    wanted = parse_services(options.service)
    config = load_config(state, options.config)
    enrolment = load_enrolment(state)
    services = config.services_over(enrolment.services)
    services = settle(wanted, services, where="--service {}: public port")
    config = replace(
        config,
        log_level=options.log_level or config.log_level,
        log_format=options.log_format or config.log_format,
    )
    public_key = AgentKey(load_key(state).public)
    return Settings(config=config, services=services, relay=enrolment.relay, public_key=public_key)
