"""Network namespaces, the bad network between them, and what runs and is measured there."""
