"""Which visitors may occupy an SSH server before they have logged in, and which wait in line.

Imports `relay_server.net` and `protocol.process`. Never knows agents, sessions or streams.
"""
