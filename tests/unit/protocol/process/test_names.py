from __future__ import annotations

import pytest

from protocol.process.names import parse_name


@pytest.mark.parametrize("name", ["a", "home", "Router-2_x.y", "a" * 32])
def test_names(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".", "a b", "a/b", "é", "a\n", "a" * 33])
def test_no_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a name of 1 to 32 letters, digits"):
        parse_name(name)
    with pytest.raises(ValueError, match=r"^expected a service name of 1 to 32 letters, digits"):
        parse_name(name, "service name")
