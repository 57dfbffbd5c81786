"""The fixtures of the end-to-end tests, for tests that take minutes."""

from tests.e2e.conftest import dropbear, login, new_relay, no_test_hangs

__all__ = ["dropbear", "login", "new_relay", "no_test_hangs"]
