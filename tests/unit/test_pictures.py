"""The pictures of the docs stand alone: no script, nothing fetched, words for screen readers."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.repository import ROOT

PICTURES = sorted((ROOT / "docs").glob("*.svg"))
WORDS = {"title", "desc"}  # what a screen reader reads out
ENGLISH, CHINESE = (ROOT / "docs" / f"how-it-works{tag}.svg" for tag in ("", ".zh-CN"))


def elements(picture: Path) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(picture.read_text()).iter())


def kind(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_it_refers_to_nothing_outside(picture: Path) -> None:
    for element in elements(picture):
        assert kind(element) not in {"script", "foreignObject", "image", "use", "a"}
        for name, value in element.attrib.items():
            assert not name.rpartition("}")[2].startswith(("on", "href"))
            assert "url(" not in value
        assert not re.search(r"url\(|@import|@font-face", element.text or "")


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_it_is_told_to_those_who_cannot_see_it(picture: Path) -> None:
    root, *inner = elements(picture)
    words = {element.get("id", ""): element.text for element in inner if kind(element) in WORDS}
    labels = (root.get("aria-labelledby") or "").split()
    assert root.get("role") == "img"
    assert sorted(words) == sorted(labels) == sorted(WORDS)
    assert all(words.values())


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_it_has_colours_for_dark_pages(picture: Path) -> None:
    assert "@media (prefers-color-scheme: dark)" in picture.read_text()


def test_the_translation_differs_in_words_only() -> None:
    def drawn(picture: Path) -> list[tuple[str, dict[str, str], str | None]]:
        lang = "{http://www.w3.org/XML/1998/namespace}lang"
        return [
            (
                kind(element),
                {name: value for name, value in element.attrib.items() if name != lang},
                element.text if kind(element) == "style" else None,
            )
            for element in elements(picture)
        ]

    assert drawn(CHINESE) == drawn(ENGLISH)


@pytest.mark.parametrize(
    ("readme", "picture"), [("README.md", ENGLISH), ("README.zh-CN.md", CHINESE)]
)
def test_the_readme_opens_with_it(readme: str, picture: Path) -> None:
    before = (ROOT / readme).read_text().partition("\n## ")[0]
    found = re.findall(r'<img src="([^"]+)" width="\d+" alt="([^"]+)">', before)
    assert [ROOT / source for source, _alt in found] == [picture]
