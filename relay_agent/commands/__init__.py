"""The commands of `relay-agent`, one a module, imported when it is run.

Each has `command(options, state)`; its options are in `relay_agent.cli`.
"""
