"""`relay-agent doctor`: every step of the way to the relay and back, and what to do about a fault.

Imports `relay_agent.link`, `relay_agent.identity` and `relay_agent.services`. Changes nothing.
"""
