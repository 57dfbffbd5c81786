"""What the relay keeps on disk: names, agents' keys, ports, invitations, and the relay's own keys.

Imports `relay_server.net` for networks. Never knows a socket, a session or a running agent.
"""
