"""What a program is made of around the protocol: settings, logs, state folder, signals, commands.

Both programs are built of it. Imports `protocol.wire` and `protocol.errors`, and of the rooms of
sessions and links only what `status` shows of them. Never knows agents or relays.
"""
