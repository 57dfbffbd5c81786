"""docs/compared.md: every cell has a source, and every source is there and of use."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "docs" / "compared.md").read_text()
TABLES = [
    [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in block.splitlines()
        if not line.startswith("|---")
    ]
    for block in re.findall(r"(?:^\|.*\n)+", TEXT, re.M)
]
SOURCES = re.findall(r"^\[\^([\w-]+)\]: \[.+\]\(https://\S+\)$", TEXT, re.M)


def test_every_row_has_a_cell_for_every_column() -> None:
    assert len(TABLES) == 5
    for columns, *rows in TABLES:
        assert rows
        for row in rows:
            assert len(row) == len(columns), row[0]


def test_every_cell_has_a_source_or_says_that_it_has_none() -> None:
    for columns, *rows in TABLES:
        for row in rows:
            for column, cell in zip(columns[1:], row[1:], strict=True):
                assert re.search(r"\]\(|\[\^", cell) or cell == "not checked", (row[0], column)


def test_our_cells_lead_to_our_own_documents() -> None:
    for _columns, *rows in TABLES:
        for row in rows:
            assert re.search(r"\]\((?!https?:)", row[1]), row[0]


def test_every_source_that_is_named_is_listed_once_and_named() -> None:
    named = re.findall(r"\[\^([\w-]+)\](?!:)", TEXT)
    assert len(SOURCES) == len(set(SOURCES)) == TEXT.partition("## Sources")[2].count("[^")
    assert set(named) == set(SOURCES)
