"""`relay-agent`, also as `python -m relay_agent`."""

from __future__ import annotations

import signal
import sys

# SIGUSR1 says that the network may have changed. By default it ends a process, and a router's
# hotplug scripts may send it while this one is still importing its modules.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)

from relay_agent import cli  # noqa: E402 - see above


def main() -> None:
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
