"""The server on the VPS: accepts links from agents and visitors on public ports."""

from typing import Final

# The command's name, as users type it.
PROGRAM: Final = "relay-server"
# In the state folder; read if it is there and --config names no other.
CONFIG_FILE: Final = "server.toml"
