"""What both commands need around the protocol: configuration, logs, state folders, addresses."""
