"""`relay-agent join`: from the invitation, given or pasted, to `relay_agent.join`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Final

import trio

from protocol.process.config import ConfigError
from protocol.process.state import StateFolder
from protocol.wire.invitation import Invitation, InvitationError
from relay_agent import join
from relay_agent.commands.options import configure_logs, read_services
from relay_agent.config import load_config
from relay_agent.identity.enrolment import LOCK

# The longest invitation has less than 4 KiB; the rest is room for a mail around it, to no avail.
MAX_PASTED: Final = 16 * 1024


def command(options: argparse.Namespace, state: StateFolder) -> None:
    services = read_services(options.service)
    config = load_config(state)
    # It talks to a person: what goes as planned is said in its own words.
    configure_logs(options, config, "warning")
    # Last, so that nobody pastes an invitation only to hear of a mistake elsewhere.
    state.ensure()
    with state.lock(LOCK):
        invitation = _invitation(options.invitation)
        trio.run(partial(join.join, invitation, services, config=config, state=state))


def _invitation(argument: str | None) -> Invitation:
    text = _pasted() if argument is None else argument
    if not text.strip():
        raise ConfigError("expected an invitation: the line that relay-server invite printed")
    try:
        return Invitation.decode(text)
    except InvitationError as error:
        raise ConfigError(str(error)) from None


def _pasted() -> str:
    if sys.stdin is None:  # started without
        return ""
    raw = sys.stdin.buffer
    if sys.stdin.isatty():
        sys.stderr.write("Paste the invitation that relay-server invite printed: ")
        sys.stderr.flush()
        data = raw.readline(MAX_PASTED)
    else:  # all of it: it may have been wrapped on its way
        data = raw.read(MAX_PASTED)
    return data.decode("utf-8", "replace")
