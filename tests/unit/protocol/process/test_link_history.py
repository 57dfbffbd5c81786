from __future__ import annotations

from protocol.process.link_history import LinkHistory


def test_ages_and_counts() -> None:
    history = LinkHistory()
    assert history.facts(6.0) == {"age": None, "links": 0, "resumed": 0, "last_cut": None}
    history.came(10.0, resumed=False)
    history.went(20.0, "no sign of life")
    history.came(21.0, resumed=True)
    assert history.facts(25.5) == {
        "age": 4.5,
        "links": 2,
        "resumed": 1,
        "last_cut": {"age": 5.5, "reason": "no sign of life"},
    }
