"""Settings for all tests."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says more about what else the machine does than about the code; and a
# failure found by chance has to be repeatable from what it printed.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")
