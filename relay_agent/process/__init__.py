"""The running agent: start and end, signals, reload.

Imports every room but `relay_agent.commands` and `relay_agent.doctor`. Knows no command line.
"""
