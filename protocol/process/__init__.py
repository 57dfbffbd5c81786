"""What a program is made of around the protocol: settings, logs, state folder, signals, commands.

Both programs are built of it. Imports `protocol.wire` and `protocol.errors`. Never knows sessions,
links, agents or relays.
"""
