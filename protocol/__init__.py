"""The ssh-relay protocol: framed, authenticated, encrypted, multiplexed, resumable.

The modules of this folder are its sans-IO core: bytes in, events out, bytes out, `now` passed in.
`protocol.transport` runs the core over TCP under trio; `protocol.process` holds what the two
commands share around it (configuration, logs, state folders). The wire is in docs/protocol.md.
"""

from typing import Final

__version__: Final = "0.1.0"
