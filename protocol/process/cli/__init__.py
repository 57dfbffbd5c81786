"""What commands share: options and exit statuses, text for a terminal, the steps of a doctor.

Imports the rest of `protocol.process`. Never knows which program it serves.
"""
