"""The server on the VPS: accepts links from agents and visitors on public ports."""

from typing import Final

# The command's name, as users type it.
PROGRAM: Final = "relay-server"
