"""The pages that docs/reference.py writes from the programs are as it would write them now."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.reference import PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_page_is_what_the_programs_say(page: Path) -> None:
    # Versions of argparse differ in where they break lines.
    assert page.read_text().split() == PAGES[page]().split(), "run: make docs"
