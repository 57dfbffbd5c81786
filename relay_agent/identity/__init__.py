"""The keys of this agent, the relay that it belongs to, and their files.

Imports the configuration and `relay_agent.services` for what was enrolled. Never dials.
"""
