"""The agent on the router: dials out to the relay and splices streams to local services."""

from typing import Final

# The command's name, as users type it.
PROGRAM: Final = "relay-agent"
# In the state folder; read if it is there and --config names no other.
CONFIG_FILE: Final = "agent.toml"
