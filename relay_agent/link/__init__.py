"""Getting to the relay and staying there: attempts, backoff, keys to try, links in doubt.

Imports `relay_agent.identity`, `relay_agent.services` and `relay_agent.net`. Never knows signals,
commands or files of the configuration.
"""
