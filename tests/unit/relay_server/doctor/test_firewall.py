from __future__ import annotations

import json
from typing import Any

import pytest

from relay_server.doctor.firewall import iptables_closed, nft_closed


def chain(policy: str = "drop", hook: str = "input") -> dict[str, Any]:
    return {"chain": {"family": "inet", "table": "filter", "name": hook, "handle": 1,
                      "type": "filter", "hook": hook, "prio": 0, "policy": policy}}  # fmt: skip


def rule(right: object) -> dict[str, Any]:
    match = {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": right}
    return {"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 7022,
                     "expr": [{"match": match}, {"counter": {"packets": 7022, "bytes": 7022}},
                              {"accept": None}]}}  # fmt: skip


def ruleset(*entries: dict[str, Any]) -> str:
    return json.dumps({"nftables": [{"metainfo": {"json_schema_version": 1}}, *entries]})


def test_where_nothing_is_dropped_nothing_is_shut() -> None:
    assert nft_closed(ruleset(), [7022]) == []
    assert nft_closed(ruleset(chain("accept")), [7022]) == []
    assert nft_closed(ruleset(chain("drop", "forward")), [7022]) == []


@pytest.mark.parametrize(
    ("right", "shut"),
    [
        (22, [7022, 11111]),
        (7022, [11111]),
        ({"set": [22, 7022, 11111]}, []),
        ({"range": [7000, 7022]}, [11111]),
        ({"set": [{"range": [7023, 8000]}, {"range": [11111, 11111]}]}, [7022]),
        ("@ports", [7022, 11111]),
    ],
)
def test_ports_that_no_rule_names_are_shut(right: object, shut: list[int]) -> None:
    assert nft_closed(ruleset(chain(), rule(right)), [7022, 11111]) == shut


def test_ports_of_a_named_set_are_named() -> None:
    elements = {"set": {"name": "ports", "type": "inet_service", "handle": 3, "elem": [7022]}}
    assert nft_closed(ruleset(chain(), elements, rule("@ports")), [7022, 11111]) == [11111]


@pytest.mark.parametrize("said", ["", "no json", "{}", "[]", '{"nftables": 1}'])
def test_what_is_not_understood_is_no_hint(said: str) -> None:
    assert nft_closed(said, [7022]) == []


def test_iptables() -> None:
    drop = "-P INPUT DROP\n-P FORWARD DROP\n"
    assert iptables_closed("-P INPUT ACCEPT\n", [7022]) == []
    assert iptables_closed(drop, [7022]) == [7022]
    assert iptables_closed(f"{drop}-A INPUT -p tcp --dport 7022 -j ACCEPT\n", [7022, 22]) == [22]
    some = "-A INPUT -p tcp -m multiport --dports 22,7000:7022,ssh -j ACCEPT\n"
    assert iptables_closed(drop + some, [22, 6999, 7022, 7023]) == [6999, 7023]
