"""Who may stand before a service's SSH server before it knows them, and who waits for a place.

Imports `relay_server.net` and `protocol.process`. Never knows agents, sessions or streams.
"""
