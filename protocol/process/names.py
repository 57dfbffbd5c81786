"""Names of agents and of services, as users choose them."""

from __future__ import annotations

import re
from typing import Final

# Characters: room for a word or two, as names go into logs and into tables of 80 columns. Another
# implementation may use 64, which is what the wire allows.
MAX_NAME: Final = 32
_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")


def parse_name(text: str, what: str = "name") -> str:
    """Check the name of an agent, or of `what`. Raises ValueError with what is expected."""
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"expected a {what} of 1 to {MAX_NAME} letters, digits, '.', '_' or '-', not {text!r}"
        )
    return text
