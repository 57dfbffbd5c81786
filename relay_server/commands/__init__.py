"""The commands of `relay-server`, one a module: its options, and what it does.

Imports every other room. Nothing but `relay_server.cli` imports it.
"""
