"""`relay-server doctor`: what the relay stands on, step by step, and what to do about a fault.

Imports `relay_server.registry`, `relay_server.net` and the configuration. Changes nothing. Never
knows a running session: what it asks of the running relay goes through the control socket.
"""
