"""Runs sessions over TCP sockets under trio: handshake, link, splice, endpoint. Both ends share it.

Imports `protocol.session`, `protocol.wire` and `protocol.errors`. Never knows agents, visitors,
settings or logs.
"""
