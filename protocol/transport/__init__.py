"""Runs the sans-IO core over TCP sockets under trio. Both ends share it."""
