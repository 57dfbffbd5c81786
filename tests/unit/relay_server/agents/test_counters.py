from __future__ import annotations

from dataclasses import dataclass

import pytest

from relay_server.agents.counters import MOST_SERVICES, OTHER_SERVICES, Counters


@dataclass(eq=False)
class Splice:
    sent: int = 0
    delivered: int = 0


def test_links_and_resumptions() -> None:
    counters = Counters()
    for resumed in (False, True, True):
        counters.attached(resumed=resumed)
    assert (counters.links, counters.resumed) == (3, 2)


def test_bytes_of_those_who_are_here_and_of_those_who_went() -> None:
    counters, first, second = Counters(), Splice(), Splice()
    with counters.carrying("ssh", first):
        first.sent, first.delivered = 5, 70
        assert (counters.received, counters.sent) == (5, 70)
        with counters.carrying("ssh", second):
            second.sent = 3
            assert counters.present == {"ssh": 2}
            assert (counters.received, counters.sent) == (8, 70)
        assert counters.present == {"ssh": 1}
        assert (counters.received, counters.sent) == (8, 70)
    assert counters.present == {"ssh": 0}
    assert counters.visitors == {"ssh": 2}
    assert (counters.received, counters.sent) == (8, 70)


def test_a_visitor_who_is_cut_is_counted_as_any_other() -> None:
    counters, splice = Counters(), Splice()

    def carry() -> None:
        with counters.carrying("ssh", splice):
            splice.sent = 5
            raise ConnectionError

    with pytest.raises(ConnectionError):
        carry()
    assert counters.received == 5
    assert counters.present == {"ssh": 0}


def test_what_the_process_before_carried_is_not_counted_again() -> None:
    counters, splice = Counters(), Splice(sent=5, delivered=70)
    with counters.carrying("ssh", splice):
        assert (counters.received, counters.sent) == (0, 0)
        splice.sent += 3
        assert (counters.received, counters.sent) == (3, 0)
    assert (counters.received, counters.sent) == (3, 0)


def test_only_so_many_services_are_told_apart() -> None:
    counters = Counters()
    for number in range(MOST_SERVICES + 2):
        with counters.carrying(f"service-{number}", Splice()):
            pass
    with counters.carrying("service-0", Splice()):
        pass
    assert len(counters.visitors) == MOST_SERVICES + 1
    assert counters.visitors[OTHER_SERVICES] == 2
    assert counters.visitors["service-0"] == 2
    assert f"service-{MOST_SERVICES}" not in counters.present
