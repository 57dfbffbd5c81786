"""What this machine's own firewall says about ports, as far as its rules can be read.

A hint and no proof: rules may jump, match by address and come in a dozen dialects, and what the
provider's firewall does is seen from elsewhere only. So all that is told of is a default that drops
where no rule names the port.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

_IPTABLES_PORTS: Final = re.compile(r"--d(?:estination-)?ports? (\S+)")


def nft_closed(ruleset: str, ports: Sequence[int]) -> list[int]:
    """Of `ports` those that no rule names, where `nft -j list ruleset` has a chain that drops."""
    try:
        entries: list[dict[str, Any]] = json.loads(ruleset)["nftables"]
        chains = [entry["chain"] for entry in entries if "chain" in entry]
    except (ValueError, KeyError, TypeError):  # another nft than we know
        return []
    if not any(one.get("hook") == "input" and one.get("policy") == "drop" for one in chains):
        return []
    # Rules, and the elements of named sets that they may look a port up in.
    named = [span for entry in entries if "chain" not in entry for span in _spans(entry)]
    return [port for port in ports if not _is_in(port, named)]


def iptables_closed(rules: str, ports: Sequence[int]) -> list[int]:
    """The same of `iptables -S`."""
    if "-P INPUT DROP" not in rules.splitlines():
        return []
    named = []
    for some in _IPTABLES_PORTS.findall(rules):
        for one in some.split(","):
            first, _, last = one.partition(":")
            if first.isdecimal() and (last or first).isdecimal():
                named.append((int(first), int(last or first)))
    return [port for port in ports if not _is_in(port, named)]


def _spans(value: Any) -> Iterator[tuple[int, int]]:
    """Every number and range in it: also those that are no ports, as a hint may be too kind."""
    if isinstance(value, dict):
        span = value.get("range")
        if isinstance(span, list) and all(type(one) is int for one in span) and len(span) == 2:
            yield span[0], span[1]
            return
        for key, one in value.items():
            if key not in ("handle", "metainfo", "counter", "prio"):
                yield from _spans(one)
    elif isinstance(value, list):
        for one in value:
            yield from _spans(one)
    elif type(value) is int:
        yield value, value


def _is_in(port: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(first <= port <= last for first, last in spans)
