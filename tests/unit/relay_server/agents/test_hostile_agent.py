"""An agent that means harm: it is enrolled, or holds a stolen key, and says what it likes."""

from __future__ import annotations

import pytest
import trio

from protocol.errors import LinkDenied, LinkLost, RefusalCode, ResetCode
from protocol.process import logs
from protocol.wire import frame as wire
from protocol.wire.frame import FrameType
from protocol.wire.hello import Hello
from tests.support.log_records import told
from tests.support.ports import free_port
from tests.support.relay import Relay, Router, echoes, serving
from tests.support.sockets import refuses, was_reset
from tests.support.trio_waiting import until

NEVER_ITS_OWN = [
    ("data", wire.data_header(1) + b"rm -rf /"),
    ("an end", wire.fin(1)),
    ("a reset", wire.reset(1, ResetCode.ABORTED)),
    ("credit", wire.window(1, 1000)),
    ("a withdrawal", wire.Unpublish(publication=1).encode()),
]


def say(router: Router, frame: bytes) -> None:
    """Send a frame that no session of ours would."""
    assert router.endpoint is not None
    router.endpoint.session._outbox.queue_control(frame)
    router.endpoint.flush()


@pytest.mark.parametrize("frame", [one for _, one in NEVER_ITS_OWN], ids=dict(NEVER_ITS_OWN))
async def test_another_agents_streams_and_publications_are_out_of_reach(
    relay: Relay, frame: bytes
) -> None:
    port = free_port()
    victim, hostile = relay.enrol("victim", port), relay.enrol("hostile")
    await victim.attach()
    await victim.serve(port)
    visitor, target = await victim.visited(port)  # stream 1 of publication 1
    await hostile.attach()
    say(hostile, frame)
    await until(lambda: relay.agent(hostile).endpoint is None)
    assert await echoes(visitor, target, b"undisturbed")
    visitor.close()


async def test_a_stolen_key_publishes_nothing_but_its_own_ports(relay: Relay) -> None:
    own, foreign, nobodys = free_port(), free_port(), free_port()
    victim, stolen = relay.enrol("victim", foreign), relay.enrol("stolen", own)
    await victim.attach()
    await victim.serve(foreign)
    await stolen.attach()
    await stolen.serve(own)
    for number, port in enumerate((foreign, nobodys, relay.port, 22)):
        stolen.publish(port)
        await until(lambda count=number + 1: len(stolen.refused) == count)  # type: ignore[misc]
        assert stolen.refused[-1].code == RefusalCode.NOT_GRANTED
    assert refuses(nobodys)
    visitor, _ = await victim.visited(foreign)
    visitor.close()


async def test_a_revoked_agent_loses_streams_ports_and_link_and_cannot_return(
    relay: Relay,
) -> None:
    router, port = await serving(relay)
    visitor, _ = await router.visited(port)
    relay.registry.revoke("home", 0.0)
    relay.agents.refresh()
    assert await was_reset(visitor)
    assert refuses(port)
    await until(lambda: router.ended)
    with pytest.raises(LinkDenied, match="revoked"):
        await router.again().attach()
    with pytest.raises(LinkDenied, match="revoked"):
        await router.again().attach(token=relay.invite("home", port))


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\nWARNING forged", "a\u202eb", "a\x00b", "x" * 65])
async def test_text_that_could_drive_a_terminal_or_forge_a_line_is_refused(
    relay: Relay, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    router = relay.enrol("home")
    with monkeypatch.context() as patched:
        encode = Hello.encode
        # Our own side would not say it either.
        patched.setattr(Hello, "encode", lambda self: encode(self).replace(b"\xa4test", _str(text)))
        with pytest.raises(LinkLost):
            await router.attach()
    await until(lambda: told(log, "handshake-failed"))
    assert "software" in told(log, "handshake-failed")[0]["reason"]
    assert text not in str(told(log, "handshake-failed"))
    await router.attach()
    say(router, wire._map_frame(FrameType.PUBLISH, {"id": 1, "service": text, "port": 1}))
    await until(lambda: told(log, "link-down"))
    assert text not in str(told(log, "link-down"))


def _str(text: str) -> bytes:
    data = text.encode()
    return bytes([0xD9, len(data)]) + data


async def test_a_flood_of_publications_is_a_minute_of_lines_and_ends_at_the_headroom(
    relay: Relay, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused over and over, with no answer ever acked."""
    monkeypatch.setattr("protocol.session.session.CONTROL_HEADROOM", 128 * 1024)
    router, other = relay.enrol("hostile"), relay.enrol("other")
    await other.attach()
    await router.attach(silent=True)
    assert router.link is not None
    enough = logs.Enough()
    log.handler.addFilter(enough)
    sent = 0
    try:
        while relay.agent(router).endpoint is not None:
            sent += 1
            assert sent < 10_000
            publish = wire.Publish(publication=sent, service="ssh", port=1).encode()
            withdraw = wire.Unpublish(publication=sent).encode()
            await router.link.send_frame(publish)
            await router.link.send_frame(withdraw)
            await trio.lowlevel.checkpoint()
    except LinkLost:
        pass
    await until(lambda: relay.agent(router).endpoint is None)
    log.handler.removeFilter(enough)
    assert len(told(log, "publication-refused")) == logs.LINES_A_MINUTE < sent
    assert "pile up unacked" in told(log, "link-down")[0]["reason"]
    assert relay.agent(other).ownership.attached
