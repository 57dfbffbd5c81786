"""Which relay this agent belongs to, and how that relay proves itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.process.address import HostPort


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayIdentity:
    """Where the relay is and how it proves that it is the one.

    `successor` is the key that it has told us to know it by from now on. `key` is for as long as
    that one has never worked. `further` are hosts where it has told us to look for it as well.
    """

    hosts: Sequence[HostPort]
    key: bytes
    successor: bytes | None = None
    further: Sequence[HostPort] = ()
