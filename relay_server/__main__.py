"""`relay-server`, also as `python -m relay_server`."""

from __future__ import annotations

import sys

from relay_server import cli


def main() -> None:
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
