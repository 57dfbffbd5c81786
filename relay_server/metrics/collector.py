"""The relay in numbers, for Prometheus: read from its state whenever somebody asks.

docs/metrics.md tells what each is good for. How many series there are is bounded, whatever agents
and visitors do: by the tables below and in `counters`. Imported only where metrics are wanted,
since `prometheus_client` need not be there otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import trio
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from protocol import __version__
from protocol.errors import DenialCode
from protocol.process.state import StateError
from relay_server.agents.context import RelayContext
from relay_server.agents.handshakes import Handshakes
from relay_server.agents.manager import Agents
from relay_server.agents.reasons import HandshakeFailure

# Agents told of by name, in the order of the alphabet. Each costs 20 µs of everybody's turn at each
# scrape; whoever has more than that many looks for one in `relay-server agents --json`.
MOST_AGENTS: Final = 200
# Seconds. trio itself rounds up to a millisecond; a person who types notices 50, and after 30 s
# systemd ends the relay.
LAG_BOUNDS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
# How often it is measured: a stall of a tenth of a second is met by every fifth.
LAG_PAUSE: Final = 0.5

# Of the others one is part of the handshake, and one is not given.
_DENIALS: Final = sorted(set(DenialCode) - {DenialCode.VERSION, DenialCode.SHUTDOWN})


class LoopLag(Collector):
    """How late the event loop is: what each byte and keystroke waits for, too."""

    def __init__(self) -> None:
        self.histogram = Histogram(
            "ssh_relay_loop_lag_seconds",
            "How late the event loop woke a task that slept until a given moment.",
            buckets=LAG_BOUNDS,
            registry=None,  # it is part of what `Metrics` collects
        )

    async def measure(self) -> None:
        while True:
            due = trio.current_time() + LAG_PAUSE
            await trio.sleep_until(due)
            self.histogram.observe(trio.current_time() - due)

    def collect(self) -> Iterator[Metric]:
        for family in self.histogram.collect():
            # The library adds when the histogram was made. No other family here has that.
            family.samples = [one for one in family.samples if not one.name.endswith("_created")]
            yield family


class Metrics(Collector):
    def __init__(self, context: RelayContext, agents: Agents, handshakes: Handshakes) -> None:
        self.lag = LoopLag()
        self._agents = agents
        self._handshakes = handshakes
        self._context = context
        self._exported = CollectorRegistry()
        self._exported.register(self)
        # Memory, processor time and descriptors, as every Prometheus client has them.
        ProcessCollector(registry=self._exported)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._exported)

    def collect(self) -> Iterator[Metric]:
        yield _gauge("build_info", "Which version this is.", {(__version__,): 1}, "version")
        yield from self._who_is_here()
        yield from self._handshakes_metrics()
        yield from self._visitors()
        yield from self.lag.collect()

    def _who_is_here(self) -> Iterator[Metric]:
        present, counters = self._agents.present, self._context.counters
        attached = {one.name for one in present if one.ownership.attached}
        # Without the registry there is no saying who is not here: then nothing is said.
        enrolled = self._enrolled()
        if enrolled is not None:
            yield _gauge("agents_enrolled", "Agents that may attach.", len(enrolled))
            named = {(name,): int(name in attached) for name in enrolled[:MOST_AGENTS]}
            text = f"Whether an agent has a link now; for at most {MOST_AGENTS} agents."
            yield _gauge("agent_attached", text, named, "agent")
        yield _gauge("agents_attached", "Agents that have a link now.", len(attached))
        sessions = [one.endpoint.session for one in present if one.endpoint is not None]
        yield _gauge("sessions", "Sessions, attached or kept for their agents.", len(sessions))
        streams = sum(session.open_streams for session in sessions)
        yield _gauge("streams", "Open streams: visitors who are carried, or ending.", streams)
        yield _gauge(
            "ports_open",
            "Public ports that are open.",
            sum(listener.open for one in present for listener in one.ports.listeners.values()),
        )
        yield _counter("links", "Links that attached.", counters.links)
        yield _counter("resumptions", "Links that continued a session.", counters.resumed)
        cap = self._context.replay_cap
        yield _gauge("replay_bytes", "Memory of frames queued or not yet acked.", cap.held)
        yield _gauge("replay_limit_bytes", "At most that much (replay_total).", cap.limit)

    def _enrolled(self) -> list[str] | None:
        try:
            return self._context.registry.enrolled()
        except StateError:
            return None

    def _handshakes_metrics(self) -> Iterator[Metric]:
        counters = self._context.counters
        yield _gauge(
            "half_open",
            "Callers at the port for agents that have not completed the handshake.",
            self._handshakes.half_open,
        )
        failed = {(str(why),): counters.handshakes_failed[why] for why in HandshakeFailure}
        text = "Callers who were not let in, as they are no agents, or not in time."
        yield _counter("handshakes_failed", text, failed, "reason")
        denied = {(code.name.lower(),): counters.denied[code] for code in _DENIALS}
        text = "Agents that proved their key and were told why they may not attach."
        yield _counter("agents_denied", text, denied, "reason")
        text = "Failures to take a caller or visitor in, mostly for want of descriptors."
        yield _counter("accept_failures", text, counters.accept_failures)

    def _visitors(self) -> Iterator[Metric]:
        present, counters = self._agents.present, self._context.counters
        here = {(service,): count for service, count in counters.present.items()}
        yield _gauge("visitors_active", "Visitors who are carried now.", here, "service")
        yield _gauge(
            "visitors_waiting",
            "Visitors who wait for their agent, or for a place at a guarded service.",
            sum(
                one.waiting_unread + sum(line.guard.waiting for line in one.lines.values())
                for one in present
            ),
        )
        came = {(service,): count for service, count in counters.visitors.items()}
        yield _counter("visitors", "Visitors who were carried.", came, "service")
        refused = {(str(reason),): count for reason, count in counters.refused.items()}
        text = "Visitors who were refused or evicted: by the guard, a list, or an agent away."
        yield _counter("visitors_refused", text, refused, "reason")
        carried = {("received",): counters.received, ("sent",): counters.sent}
        text = "Bytes received from visitors, and sent to them."
        yield _counter("visitor_bytes", text, carried, "direction")


_Values = Mapping[tuple[str], float]


def _gauge(name: str, text: str, values: float | _Values, label: str = "") -> Metric:
    return _filled(GaugeMetricFamily, name, text, values, label)


def _counter(name: str, text: str, values: float | _Values, label: str = "") -> Metric:
    return _filled(CounterMetricFamily, name, text, values, label)  # adds _total


def _filled(
    family: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    values: float | _Values,
    label: str,
) -> Metric:
    name = f"ssh_relay_{name}"
    if not isinstance(values, Mapping):
        return family(name, text, value=values)
    filled = family(name, text, labels=[label])
    for labels, value in values.items():
        filled.add_metric(labels, value)
    return filled
