"""The agent on the router: dials out to the relay and splices streams to local services."""
