"""docs/glossary.md: each of its terms is in use, and no word that a term has replaced."""

from __future__ import annotations

import re
import tokenize

import pytest

from tests.support.repository import ROOT

GLOSSARY = ROOT / "docs" / "glossary.md"
PRODUCT = [
    path
    for package in ("protocol", "relay_server", "relay_agent")
    for path in sorted((ROOT / package).rglob("*.py"))
]
DOCUMENTS = [
    path for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
    if path not in (GLOSSARY, ROOT / "CHANGELOG.md")
]  # fmt: skip
SECTIONS = re.split(r"^## .*\n", GLOSSARY.read_text(), flags=re.M)[1:]


def terms(section: str) -> list[str]:
    """One entry may define two terms that belong together."""
    entries = [line.partition(":")[0] for line in section.splitlines() if line.startswith("- ")]
    return [term for entry in entries for term in re.findall(r"\*\*([^*]+)\*\*", entry)]


def in_words(text: str) -> str:
    """Lower case, one space between words, whether they are prose or `HalfOpenLimit`."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower()
    return " ".join(re.findall(r"[a-z0-9]+", text))


# Words that stood for things which have another name now; the glossary has that.
FORMER_WORDS = {
    "attachment": "link state; attempt",
    "brake": "rate limit",
    "burden": "penalty",
    "containment": "fault isolation",
    "doorway": "half-open limit",
    "examination": "checks",
    "gate": "waiting line",
    "grade": "penalty level",
    "grants": "receive credit",
    "insist": "admit overdue",
    "intake": "send admission",
    "patient": "context",
    "presence": "agent state",
    "scrape": "metrics endpoint",
    "seat": "admit",
    "supervision": "systemd status",
    "tally": "counters",
    "tenure": "ownership",
    "uncounted": "penalty exempt",
    "untold": "suppressed",
    "young": "unauthenticated",
}
ALL_TERMS = [term for section in SECTIONS for term in terms(section)]


@pytest.fixture(scope="module")
def used() -> str:
    return " ".join(in_words(path.read_text()) for path in (*PRODUCT, *DOCUMENTS))


@pytest.mark.parametrize("term", ALL_TERMS)
def test_the_term_is_in_use(term: str, used: str) -> None:
    assert re.search(rf"\b{in_words(term)}(s|es|ed|d|ted)?\b", used)


def test_each_term_is_defined_once_and_in_its_place_of_the_alphabet() -> None:
    assert len(SECTIONS) == 5
    assert len(ALL_TERMS) > 50
    assert len(ALL_TERMS) == len(set(ALL_TERMS))
    for section in SECTIONS:
        assert terms(section) == sorted(terms(section), key=str.lower)


def test_no_name_in_the_code_has_a_former_word() -> None:
    for path in PRODUCT:
        with path.open() as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type == tokenize.NAME:
                    for word in in_words(token.string.replace("_", " ")).split():
                        where = f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}"
                        assert word not in FORMER_WORDS, f"{where}; say {FORMER_WORDS[word]}"


def test_entries_are_short() -> None:
    entries = [line for line in GLOSSARY.read_text().splitlines() if line.startswith("- ")]
    for entry in entries:
        assert re.fullmatch(r"- \*\*.+?\*\*(, \*\*.+?\*\*)*: \S.*[.]", entry), entry
        assert len(re.findall(r"[.?](?= |$)", entry)) <= 3, entry
