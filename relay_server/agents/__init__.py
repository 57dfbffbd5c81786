"""The agents that are here: handshakes, sessions, public ports and the visitors on them.

Imports `relay_server.guard`, `relay_server.registry` and `relay_server.net`. Never knows the
doctor, metrics, commands or how the process is run.
"""
