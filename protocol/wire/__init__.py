"""What is on the wire: Noise, records, frames, greetings and invitations, as bytes and values.

Imports `protocol.errors` and nothing else of ours. Never knows sessions, sockets, tasks or time.
"""
