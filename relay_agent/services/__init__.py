"""What the agent publishes: services, their targets, and finding the machine's SSH server.

Imports `relay_agent.net` and `protocol`. Never knows how the agent is attached, or to which relay.
"""
