"""`relay-agent`, also as `python -m relay_agent`."""

from __future__ import annotations

import sys

from relay_agent.cli import command_line


def main() -> None:
    sys.exit(command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
