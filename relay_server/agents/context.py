"""What every part of a running relay shares, so that it is handed down as one thing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from protocol.session.replay import ReplayCap
from protocol.wire.buffers import BufferPool
from relay_server.agents.counters import Counters
from relay_server.net.fd_store import StoredListeners

if TYPE_CHECKING:
    from relay_server.config import ServerConfig
    from relay_server.registry.registry import Registry
    from relay_server.registry.relay_keys import RelayKeys


@dataclass(slots=True, eq=False)
class RelayContext:
    config: ServerConfig  # as it is now: read it anew each time, and keep no copy
    registry: Registry
    keys: RelayKeys
    nursery: trio.Nursery  # of all that outlives a link: it ends with the relay
    stored: StoredListeners
    counters: Counters = field(default_factory=Counters)
    pool: BufferPool = field(default_factory=BufferPool)
    replay_cap: ReplayCap = field(init=False)  # of all sessions together

    def __post_init__(self) -> None:
        self.replay_cap = ReplayCap(self.config.replay_total)

    def reconfigure(self, config: ServerConfig) -> None:
        """Put `config` into effect, for visitors, callers and sessions from now on.

        The budget is set here because each read of a socket asks for it.
        """
        self.config = config
        self.replay_cap.limit = config.replay_total
