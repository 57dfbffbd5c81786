"""Dialling a host under all its names and addresses, and the route that the kernel takes there.

Imports `protocol.process` only. Never knows the relay, sessions or services.
"""
