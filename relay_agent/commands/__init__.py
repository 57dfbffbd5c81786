"""The commands of `relay-agent`, one a module, imported when it is named.

Imports every other room, where a router needs long for it only in `run`. Nothing but
`relay_agent.cli` imports it.
"""
