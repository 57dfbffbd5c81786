"""The relay in numbers for Prometheus, and the HTTP endpoint that answers with them.

Imports `relay_server.agents` and `relay_server.net`. An extra: nothing else imports it, as its
libraries need not be there.
"""
