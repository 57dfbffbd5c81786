"""What identifies agents, relays and sessions.

All of these are bytes, and each is a type of its own: a type checker then finds where one of them
is passed for another.
"""

from __future__ import annotations

from typing import Final, NewType

AgentKey = NewType("AgentKey", bytes)  # the public half of an agent's static key
RelayKey = NewType("RelayKey", bytes)  # the public half of a relay's static key
Token = NewType("Token", bytes)  # the secret of an invitation

ID_SIZE: Final = 16  # bytes, of the two below: random, so never the same twice
SessionId = NewType("SessionId", bytes)
InstanceId = NewType("InstanceId", bytes)  # of one run of an agent's process
