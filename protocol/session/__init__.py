"""The session: streams, credit, replay, scheduling and liveness, sans-IO, with `now` passed in.

Imports `protocol.wire` and `protocol.errors`. Never knows what a link is made of: no socket, no
task, no clock, no log.
"""
