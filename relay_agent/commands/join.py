"""`relay-agent join`: from the invitation, given or pasted, to `relay_agent.join`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

from protocol.process import logs
from protocol.process.config import ConfigError
from protocol.process.state import StateFolder
from relay_agent.options import add_service_option

if TYPE_CHECKING:
    from protocol.wire.invitation import Invitation

# The longest invitation has less than 4 KiB. With what is longer, such as a whole mail, the error
# is the same as with its first 16 KiB.
MAX_PASTED: Final = 16 * 1024

_DESCRIPTION: Final = """\
Enrol at the relay that the invitation comes from, try the whole way from the
public port to the SSH server of this machine, and save what `run` needs.
After a failure, run it again with the same invitation.
"""
_EXAMPLES: Final = """\
examples:
  relay-agent join
  relay-agent join relay1_...
  relay-agent join --service ssh=192.168.1.1:22
  relay-agent join --service ssh=127.0.0.1:22@11111 --service web=[::1]:80@11112
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    parser.add_argument(
        "invitation",
        nargs="?",
        metavar="INVITATION",
        help="the line that relay-server invite printed; asked for, or read from standard"
        " input, if left out",
    )
    add_service_option(
        parser,
        "default: ssh, the SSH server found on this machine, on the first port of the invitation",
    )


def run(options: argparse.Namespace, state: StateFolder) -> None:
    import trio

    from relay_agent.config import load_config, parse_services
    from relay_agent.identity.enrolment import LOCK
    from relay_agent.join import join

    services = parse_services(options.service)
    config = load_config(state)
    # `join` tells a person in words of its own what goes as planned.
    logs.configure(options.log_level or "warning", options.log_format or config.log_format)
    # The invitation last: a mistake elsewhere is told before a person is asked to paste it.
    state.ensure()
    with state.lock(LOCK):
        invitation = _invitation(options.invitation)
        trio.run(partial(join, invitation, services, config=config, state=state))


def _invitation(argument: str | None) -> Invitation:
    from protocol.wire.invitation import Invitation, InvitationError

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
