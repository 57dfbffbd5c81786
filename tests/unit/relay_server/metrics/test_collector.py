from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from protocol.errors import LinkDenied
from protocol.process.state import StateError
from protocol.transport.sockets import receive_exactly, send_all
from relay_server.agents.reasons import HandshakeFailure, Refusal
from relay_server.metrics.collector import LAG_BOUNDS, LAG_PAUSE, MOST_AGENTS, LoopLag, Metrics
from tests.support.ports import free_port
from tests.support.relay import Relay
from tests.support.repository import ROOT
from tests.support.sockets import caller_of, was_reset
from tests.support.trio_waiting import until

Clock = trio.testing.MockClock
Values = dict[str, dict[str, float]]  # by name, then by the labels' values


def metrics_of(relay: Relay) -> Metrics:
    return Metrics(relay.context, relay.agents, relay.handshakes)


def values(relay: Relay) -> Values:
    read: Values = {}
    for family in text_string_to_metric_families(metrics_of(relay).page().decode()):
        for sample in family.samples:
            name = sample.name.removeprefix("ssh_relay_")
            read.setdefault(name, {})[",".join(sample.labels.values())] = sample.value
    return read


async def test_a_relay_without_anybody(relay: Relay) -> None:
    read = values(relay)
    assert read["agents_enrolled"] == read["agents_attached"] == read["sessions"] == {"": 0}
    assert "agent_attached" not in read
    assert read["links_total"] == read["resumptions_total"] == {"": 0}
    assert set(read["handshakes_failed_total"].values()) == {0}
    assert read["replay_limit_bytes"] == {"": relay.config.replay_total}
    assert read["process_open_fds"][""] > 0


async def test_an_agent_and_its_visitor(relay: Relay) -> None:
    router = relay.enrol("home", port := free_port())
    relay.enrol("office")
    await router.attach()
    await router.serve(port)
    visitor, target = await router.visited(port)
    with visitor, target:
        await send_all(visitor, b"question")
        assert await receive_exactly(target, 8) == b"question"
        read = values(relay)
        assert read["agents_enrolled"] == {"": 2}
        assert read["agent_attached"] == {"home": 1, "office": 0}
        assert read["agents_attached"] == read["sessions"] == read["streams"] == {"": 1}
        assert read["ports_open"] == {"": 1}
        assert read["visitors_active"] == read["visitors_total"] == {"ssh": 1}
        assert read["visitor_bytes_total"] == {"received": 8, "sent": 0}
        await router.cut()
        await router.resume()
        read = values(relay)
        assert read["links_total"] == {"": 2}
        assert read["resumptions_total"] == {"": 1}
    await until(lambda: values(relay)["visitors_active"] == {"ssh": 0})
    assert values(relay)["visitor_bytes_total"] == {"received": 8, "sent": 0}


async def test_who_waits_for_the_agent_and_who_is_refused(relay: Relay, mock_clock: Clock) -> None:
    router = relay.enrol("home", port := free_port())
    await router.attach()
    await router.serve(port)
    await router.cut()
    assert values(relay)["agent_attached"] == {"home": 0}
    visitor = caller_of(port)
    await until(lambda: values(relay)["visitors_waiting"] == {"": 1})
    mock_clock.jump(relay.config.visitor_wait)
    assert await was_reset(visitor)
    assert values(relay)["visitors_refused_total"] == {"agent_away": 1}


async def test_what_is_unacked_is_memory(relay: Relay) -> None:
    router = relay.enrol("home", port := free_port())
    await router.attach()
    await router.serve(port)
    visitor, _ = await router.visited(port)
    await router.cut()
    with visitor:
        await send_all(visitor, b"kept")
        await until(lambda: values(relay)["replay_bytes"][""] > 4)


async def test_half_open_callers_and_those_that_fail(relay: Relay, mock_clock: Clock) -> None:
    caller = caller_of(relay.port)
    await until(lambda: values(relay)["half_open"] == {"": 1})
    mock_clock.jump(relay.config.handshake_timeout)
    with caller:
        await until(lambda: values(relay)["half_open"] == {"": 0})
    assert values(relay)["handshakes_failed_total"]["late"] == 1


async def test_each_way_to_fail_is_one_that_is_told(relay: Relay) -> None:
    def failed(reason: str) -> float:
        return values(relay)["handshakes_failed_total"][reason]

    caller_of(relay.port).close()
    await until(lambda: failed("closed") == 1)
    with caller_of(relay.port) as caller:
        await send_all(caller, b"GET / HTTP/1.1\r\n" * 10)
        await until(lambda: failed("wrong_protocol") == 1)
    for _ in range(relay.config.half_open_per_source + 1):
        relay.leftovers.append(caller_of(relay.port))
    await until(lambda: failed("too_many_from_source") == 1)


async def test_agents_that_are_denied(relay: Relay) -> None:
    stranger = relay.enrol("home")
    relay.registry.revoke("home", 0.0)
    with pytest.raises(LinkDenied, match="revoked"):
        await stranger.attach()
    assert values(relay)["agents_denied_total"]["revoked"] == 1
    router = await relay.attached("office")
    with pytest.raises(LinkDenied, match="another process"):
        await router.again().attach()
    assert values(relay)["agents_denied_total"]["duplicate"] == 1


async def test_the_names_of_agents_have_a_bound(relay: Relay) -> None:
    with closing(sqlite3.connect(relay.registry._path)) as db, db:
        db.executemany(
            "INSERT INTO agents (name, public_key, created) VALUES (?, ?, 0)",
            [(f"a{number:04}", number.to_bytes(32)) for number in range(MOST_AGENTS + 1)],
        )
    read = values(relay)
    assert read["agents_enrolled"] == {"": MOST_AGENTS + 1}
    assert len(read["agent_attached"]) == MOST_AGENTS
    assert f"a{MOST_AGENTS:04}" not in read["agent_attached"]


async def test_without_the_registry_the_rest_is_told(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> list[str]:
        raise StateError("the disk is gone")

    monkeypatch.setattr(relay.registry, "enrolled", fails)
    read = values(relay)
    assert "agents_enrolled" not in read
    assert "agent_attached" not in read
    assert read["agents_attached"] == {"": 0}


async def test_accept_that_fails_is_counted(relay: Relay) -> None:
    relay.context.counters.accept_failed()
    assert values(relay)["accept_failures_total"] == {"": 1}


def lag_samples(lag: LoopLag) -> dict[str, float]:
    """The histogram's buckets by their bounds; its count and sum by their names."""
    (histogram,) = lag.collect()
    return {one.labels.get("le", one.name): one.value for one in histogram.samples}


@pytest.mark.parametrize("bound", LAG_BOUNDS)
def test_lag_up_to_a_bound_is_in_its_bucket(bound: float) -> None:
    lag = LoopLag()
    lag.histogram.observe(bound)
    lag.histogram.observe(bound * 1.001)
    samples = lag_samples(lag)
    at = [str(one) for one in LAG_BOUNDS].index(str(bound))
    assert [samples[str(one)] for one in LAG_BOUNDS] == [0] * at + [1] + [2] * (8 - at)
    assert samples["+Inf"] == 2


async def test_the_lag_is_how_late_a_sleeper_wakes(mock_clock: Clock) -> None:
    lag = LoopLag()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lag.measure)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(LAG_PAUSE + 0.2)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    samples = lag_samples(lag)
    assert samples["ssh_relay_loop_lag_seconds_sum"] == pytest.approx(0.2)
    assert samples["ssh_relay_loop_lag_seconds_count"] == 1
    assert [samples[bound] for bound in ("0.1", "0.25")] == [0, 1]


def test_the_lag_has_buckets_a_count_and_a_sum_and_nothing_else() -> None:
    bounds = [*map(str, LAG_BOUNDS), "+Inf"]
    assert [*lag_samples(LoopLag())] == [
        *bounds,
        "ssh_relay_loop_lag_seconds_count",
        "ssh_relay_loop_lag_seconds_sum",
    ]


# What people read and look at

NAME = re.compile(r"\b(?:ssh_relay|process)_\w+")


def exported(relay: Relay) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+)", metrics_of(relay).page().decode(), re.M))


def family(name: str) -> str:
    return name.removesuffix("_bucket")


async def test_every_metric_of_the_dashboard_is_exported(relay: Relay) -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/ssh-relay.json").read_text())
    asked = [target for panel in dashboard["panels"] for target in panel["targets"]]
    names = {family(name) for target in asked for name in NAME.findall(target["expr"])}
    assert names <= exported(relay)
    ours = {name for name in exported(relay) if name.startswith("ssh_relay_")}
    assert ours - names == {"ssh_relay_build_info"}  # which finds the relays
    assert "ssh_relay_build_info" in json.dumps(dashboard["templating"])


async def test_every_label_of_the_dashboard_is_one_of_its_metric(relay: Relay) -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/ssh-relay.json").read_text())
    router = relay.enrol("home", port := free_port())
    await router.attach()
    await router.serve(port)
    visitor, _ = await router.visited(port)
    relay.context.counters.refused[Refusal.AGENT_AWAY] += 1
    labels = {
        sample.name: set(sample.labels) | {"instance"}  # which Prometheus adds
        for one in text_string_to_metric_families(metrics_of(relay).page().decode())
        for sample in one.samples
    }
    with visitor:
        for target in (one for panel in dashboard["panels"] for one in panel["targets"]):
            wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            wanted |= set(re.findall(r"by \((\w+)\)", target["expr"]))
            for name in NAME.findall(target["expr"]):
                assert wanted <= labels[name], name


async def test_the_document_lists_every_metric_and_no_other(relay: Relay) -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = [name for cell in table for name in NAME.findall(cell)]
    assert sorted(listed) == sorted(exported(relay))
    assert {family(name) for name in NAME.findall(text)} <= exported(relay)


def test_the_document_lists_every_reason_and_no_other() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    for name, reasons in (("visitors_refused", Refusal), ("handshakes_failed", HandshakeFailure)):
        _, _, rest = text.partition(f"\nOf `ssh_relay_{name}_total`:\n\n")
        table, _, _ = rest.partition("\n\n")
        assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(reasons)
