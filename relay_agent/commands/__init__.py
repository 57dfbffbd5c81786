"""The commands of `relay-agent`, one a module, imported when it is run.

Imports every other room. Nothing but `relay_agent.cli` imports it, which has the options.
"""
