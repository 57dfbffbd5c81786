"""`[metrics]` of the relay: what Prometheus and a health check get of one at work."""

from __future__ import annotations

import http.client
import re
import signal
from collections.abc import Callable
from pathlib import Path

from tests.support.blocking_sockets import Target, pair, receive
from tests.support.ports import LOOPBACK, free_port, listens
from tests.support.programs import Agent, Relay, services
from tests.support.ssh import SshServer
from tests.support.waiting import LIMIT, eventually

NewRelay = Callable[..., Relay]
NewAgent = Callable[..., Agent]


def ask(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=LIMIT)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def metric(port: int, name: str) -> float:
    status, text = ask(port, "/metrics")
    assert status == 200
    found = re.search(rf"^ssh_relay_{re.escape(name)} (\S+)$", text, re.M)
    return float(found[1]) if found else 0.0


def test_a_relay_at_work_tells_its_numbers(
    new_relay: NewRelay, new_agent: NewAgent, dropbear: SshServer, target: Target
) -> None:
    def becomes(name: str, value: float) -> None:
        # What is read may be a second old.
        eventually(lambda: metric(metrics, name) == value, what=f"{name} is {value:g}")

    metrics, public = free_port(), free_port()
    relay = new_relay(config=f'metrics = {{ listen = "{LOOPBACK}:{metrics}" }}\n')
    agent = new_agent()
    log = relay.start()
    log.wait_for_line(rf"metrics-listening host={LOOPBACK} port={metrics}")
    assert ask(metrics, "/health") == (200, "listening\n")
    assert metric(metrics, "agents_attached") == 0
    agent.join(relay.invite("home", public), f"ssh={LOOPBACK}:{dropbear.port}@{public}")
    agent.configure(services(("web", target.port, public)))
    agent.start(public)
    becomes('agent_attached{agent="home"}', 1)
    becomes('visitors_active{service="ssh"}', 0)
    came = metric(metrics, 'visitor_bytes_total{direction="received"}')
    with pair(public, target) as (visitor, at_target):
        visitor.sendall(b"12345678")
        assert receive(at_target, 8) == b"12345678"
        becomes('visitor_bytes_total{direction="received"}', came + len(b"hello?12345678"))
        becomes('visitors_active{service="web"}', 1)
    becomes('visitors_active{service="web"}', 0)
    becomes('visitors_total{service="web"}', 1)
    log.terminate(signal.SIGTERM)
    assert not listens(metrics)


def test_an_address_that_is_taken_is_one_line(new_relay: NewRelay, target: Target) -> None:
    relay = new_relay(config=f'metrics.listen = "{LOOPBACK}:{target.port}"\n')
    argv = ["run", "--config", str(relay.config), "--listen", f"{LOOPBACK}:{relay.port}"]
    done = relay.cli(*argv)
    assert done.returncode == 1
    assert f"cannot listen on {LOOPBACK}:{target.port} for metrics" in done.stderr
    assert "Traceback" not in done.stderr


def test_unless_told_it_needs_no_library(new_relay: NewRelay, tmp_path: Path) -> None:
    for name in ("h11", "prometheus_client"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not wanted')\n")
    relay = new_relay()
    relay.environment["PYTHONPATH"] = str(tmp_path)
    relay.start()
    relay.process.terminate()


def test_a_missing_library_is_one_line(new_relay: NewRelay, tmp_path: Path) -> None:
    text = "raise ModuleNotFoundError(\"No module named 'h11'\", name='h11')\n"
    (tmp_path / "h11.py").write_text(text)
    relay = new_relay(config=f'metrics.listen = "{LOOPBACK}:{free_port()}"\n')
    relay.environment["PYTHONPATH"] = str(tmp_path)
    argv = ["run", "--config", str(relay.config), "--listen", f"{LOOPBACK}:{relay.port}"]
    done = relay.cli(*argv)
    assert done.returncode == 1
    assert "metrics need the Python library h11: pip install" in done.stderr
    assert "Traceback" not in done.stderr
