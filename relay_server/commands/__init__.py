"""The commands of `relay-server`, one a module, imported when it is named.

Imports every other room. Nothing but `relay_server.cli` imports it.
"""
