"""The ssh-relay protocol: framed, authenticated, encrypted, multiplexed, resumable.

`protocol.wire` and `protocol.session` are its sans-IO core: bytes in, events out, bytes out, `now`
passed in. `protocol.transport` runs the core over TCP under trio; `protocol.process` holds what the
two programs share around it (settings, logs, state folder, command line). docs/protocol.md has the
wire, docs/architecture.md the rooms.
"""

from typing import Final

__version__: Final = "0.1.0"
