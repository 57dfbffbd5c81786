"""The control socket, by which a command talks to the running process of the same program.

Imports the rest of `protocol.process`. Never knows what a command means.
"""
