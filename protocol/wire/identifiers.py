"""What identifies agents, relays, sessions and visitors.

Keys, tokens and ids are bytes, and each is a type of its own: a type checker then finds where one
of them is passed for another.
"""

from __future__ import annotations

from typing import Final, NewType, TypeAlias

AgentKey = NewType("AgentKey", bytes)  # the public half of an agent's static key
RelayKey = NewType("RelayKey", bytes)  # the public half of a relay's static key
Token = NewType("Token", bytes)  # the secret of an invitation

ID_SIZE: Final = 16  # bytes, of the two below: random, so never the same twice
SessionId = NewType("SessionId", bytes)
InstanceId = NewType("InstanceId", bytes)  # of one run of an agent's process

# IP address and port of the other end of a connection. What a user writes and a program dials is a
# `HostPort`, whose host may be a name.
SocketAddress: TypeAlias = tuple[str, int]
