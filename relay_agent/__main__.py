"""`relay-agent`, also as `python -m relay_agent`."""

from __future__ import annotations

import signal
import sys

# It says that the network may have changed; until somebody listens it must not end us, as it does
# by default: a router's hotplug scripts send it while we are being imported.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)

from relay_agent.cli import command_line  # noqa: E402 - see above


def main() -> None:
    sys.exit(command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
