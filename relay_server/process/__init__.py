"""The running relay: start and end, signals, reload, handover to the next process, backup.

Imports every other room but `relay_server.commands` and `relay_server.doctor`. Knows no command
line.
"""
