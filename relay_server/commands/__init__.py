"""The commands of `relay-server`, one a module: its options, and what it does."""
