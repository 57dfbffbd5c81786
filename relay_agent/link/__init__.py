"""Getting to the relay and staying attached: attempts, backoff, keys and hosts to try, the session.

Imports `relay_agent.identity`, `relay_agent.services` and `relay_agent.net`. Never knows signals,
commands or files of the configuration.
"""
