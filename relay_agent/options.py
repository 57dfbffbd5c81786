"""Options that several commands of the agent take."""

from __future__ import annotations

import argparse


def add_service_option(parser: argparse.ArgumentParser, default: str) -> None:
    """`default` says in --help which services they are if none is given."""
    parser.add_argument(
        "--service",
        action="append",
        default=[],
        metavar="NAME=HOST:PORT[@PUBLIC_PORT]",
        help=f"what to publish, and on which port of the relay; repeatable ({default})",
    )
