from __future__ import annotations

from dataclasses import dataclass

import pytest

from relay_server.tally import MOST_SERVICES, OTHER_SERVICES, Tally


@dataclass(eq=False)
class Splice:
    sent: int = 0
    delivered: int = 0


def test_links_and_resumptions() -> None:
    tally = Tally()
    for resumed in (False, True, True):
        tally.attached(resumed=resumed)
    assert (tally.links, tally.resumed) == (3, 2)


def test_bytes_of_those_who_are_here_and_of_those_who_went() -> None:
    tally, first, second = Tally(), Splice(), Splice()
    with tally.carrying("ssh", first):
        first.sent, first.delivered = 5, 70
        assert (tally.received, tally.sent) == (5, 70)
        with tally.carrying("ssh", second):
            second.sent = 3
            assert tally.present == {"ssh": 2}
            assert (tally.received, tally.sent) == (8, 70)
        assert tally.present == {"ssh": 1}
        assert (tally.received, tally.sent) == (8, 70)
    assert tally.present == {"ssh": 0}
    assert tally.visitors == {"ssh": 2}
    assert (tally.received, tally.sent) == (8, 70)


def test_a_visitor_who_is_cut_is_counted_as_any_other() -> None:
    tally, splice = Tally(), Splice()

    def carry() -> None:
        with tally.carrying("ssh", splice):
            splice.sent = 5
            raise ConnectionError

    with pytest.raises(ConnectionError):
        carry()
    assert tally.received == 5
    assert tally.present == {"ssh": 0}


def test_what_the_process_before_carried_is_not_counted_again() -> None:
    tally, splice = Tally(), Splice(sent=5, delivered=70)
    with tally.carrying("ssh", splice):
        assert (tally.received, tally.sent) == (0, 0)
        splice.sent += 3
        assert (tally.received, tally.sent) == (3, 0)
    assert (tally.received, tally.sent) == (3, 0)


def test_only_so_many_services_are_told_apart() -> None:
    tally = Tally()
    for number in range(MOST_SERVICES + 2):
        with tally.carrying(f"service-{number}", Splice()):
            pass
    with tally.carrying("service-0", Splice()):
        pass
    assert len(tally.visitors) == MOST_SERVICES + 1
    assert tally.visitors[OTHER_SERVICES] == 2
    assert tally.visitors["service-0"] == 2
    assert f"service-{MOST_SERVICES}" not in tally.present
