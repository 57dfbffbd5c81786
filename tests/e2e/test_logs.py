"""The logs of both sides, as docs/logs.md has them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import LOOPBACK, free_port
from tests.support.processes import ProcessUnderTest
from tests.support.programs import Agent, Relay
from tests.support.ssh import SshServer, read_banner
from tests.support.waiting import eventually

NewRelay = Callable[..., Relay]
NewAgent = Callable[..., Agent]

DOCUMENT = (Path(__file__).parents[2] / "docs" / "logs.md").read_text()
LISTED = set(re.findall(r"^\| `([\w-]+)` \|", DOCUMENT, re.M))

TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARNING|ERROR) ([\w-]+)( .+)?")


def parsed(line: str, log_format: str) -> tuple[str, str, dict[str, Any]]:
    """Level, event and, of JSON, the fields."""
    if log_format == "text":
        match = TEXT_LINE.fullmatch(line)
        assert match, line
        return match[1].lower(), match[2], {}
    fields = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields.pop("time")), line
    return fields.pop("level"), fields.pop("event"), fields


def count(process: ProcessUnderTest, word: str) -> int:
    return sum(word in line for line in process.log)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_every_line_of_both_sides_is_an_event_that_is_listed(
    new_relay: NewRelay, new_agent: NewAgent, dropbear: SshServer, log_format: str
) -> None:
    public = free_port()
    relay = new_relay(config=f'log_format = "{log_format}"\n')
    agent = new_agent()
    relay.start()
    agent.join(relay.invite("home", public), f"ssh={LOOPBACK}:{dropbear.port}@{public}")
    agent.configure(f'log_format = "{log_format}"\n')
    agent.start().wait_for_line("service-up")
    assert read_banner(public).startswith(b"SSH-2.0-")
    agent.process.wait_for_line("visitor-out")
    agent.process.terminate()
    # Of the link that join had, and of this one's.
    eventually(lambda: count(relay.process, "link-down") >= 2, what="both links are down")
    relay.process.terminate()
    for process, expected in (
        (agent.process, {"link-up", "service-up", "visitor-in", "visitor-out", "stopping"}),
        (relay.process, {"listening", "agent-enrolled", "link-up", "link-down", "visitor-out"}),
    ):
        told = [parsed(line, log_format) for line in process.log]
        assert expected <= {event for _, event, _ in told} <= LISTED
    if log_format == "json":
        (up,) = [fields for _, event, fields in told if event == "link-up"][-1:]
        assert (up["agent"], up["resumed"]) == ("home", False)
