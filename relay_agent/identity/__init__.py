"""Who the agent is and which relay it belongs to: keys and enrolment, and their files.

Imports the configuration and `relay_agent.services` for what was enrolled. Never dials.
"""
