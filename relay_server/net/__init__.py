"""Sockets and addresses: listening, accepting, networks, the FD store, isolation of faults.

Imports `protocol.process` only. Never knows agents, visitors or the guard.
"""
