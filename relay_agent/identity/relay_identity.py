"""Which relay this agent belongs to, and how that relay proves itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.process.address import HostPort
from protocol.wire.identifiers import RelayKey


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayIdentity:
    """At which hosts the relay is, and the key by which it proves that it is the one.

    `successor` is a key that the relay has told this agent to know it by from now on; `key` is kept
    until that one has worked. `further` are hosts where, as it has told, it may be found as well.
    """

    hosts: Sequence[HostPort]
    key: RelayKey
    successor: RelayKey | None = None
    further: Sequence[HostPort] = ()
