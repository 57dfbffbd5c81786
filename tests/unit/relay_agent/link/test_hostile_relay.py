"""A relay that means harm: it holds the key that the agent trusts, and says what it likes."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from protocol.errors import RefusalCode, ResetCode
from protocol.process.address import HostPort
from protocol.wire import frame as wire
from relay_agent.config import AgentConfig
from relay_agent.link.attach_loop import AttachLoop
from relay_agent.services import publisher as module
from relay_agent.services.publisher import REPUBLISH
from relay_agent.services.service import Service
from tests.support.agent import dialer_for, serving
from tests.support.log_records import events
from tests.support.scripted_relay import LIMIT, ScriptedRelay, Target
from tests.support.trio_waiting import until

# What a visitor may be called on the wire: printable text of up to 64 characters.
CRAZY = [
    "127.0.0.1",
    "0.0.0.0",
    "169.254.169.254",
    "::1%eth0",
    "router.lan:22",
    "../../etc/passwd",
    "$(reboot); `id` | nc",
    "x" * 64,
    "é",
]


class Dials(list[HostPort]):
    """Stands for `dial_target`, and keeps whom it was asked to dial."""

    async def __call__(self, target: HostPort, visitor: str) -> None:
        self.append(target)
        raise ConnectionRefusedError(111, "Connection refused")


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> Dials:
    dials = Dials()
    monkeypatch.setattr(module, "dial_target", dials)
    return dials


async def test_whatever_it_says_of_a_visitor_the_configured_target_is_dialled(
    dials: Dials,
) -> None:
    ssh = Service("ssh", HostPort("192.0.2.1", 22), 11111)
    web = Service("web", HostPort("192.0.2.2", 80), 11112)
    async with serving(ssh, web) as (_, relay):
        for publication, name in [(1, one) for one in CRAZY] + [(2, one) for one in CRAZY]:
            relay.open(publication, (name, 0))
        relay.now.flush()
        await until(lambda: len(dials) == 2 * len(CRAZY))
    assert Counter(dials) == {ssh.target: len(CRAZY), web.target: len(CRAZY)}


@pytest.mark.parametrize(
    "hostile",
    [
        wire.Open(publication=2, source=("203.0.113.9", 1)).encode(1),
        wire.Open(publication=2**32 - 1, source=("203.0.113.9", 1)).encode(1),
        wire.Open(publication=1, source=("a\x1b[2Jb", 1)).encode(1),
        wire.Open(publication=1, source=("a\nb", 1)).encode(1),
        wire.Open(publication=1, source=("", 1)).encode(1),
        wire.Open(publication=1, source=("x" * 65, 1)).encode(1),
        wire.Published(publication=7, port=11111).encode(),
        wire._map_frame(wire.FrameType.REFUSED, {"id": 1, "code": 2, "reason": "a\x1b[2Jb"}),
        wire.Publish(publication=1, service="ssh", port=22).encode(),
        wire.ack(10_000),
        wire.window(0, 2**31 - 1),
    ],
    ids=[
        "never published",
        "never published, the last id",
        "a terminal's escape for a name",
        "two lines for a name",
        "no name",
        "too long a name",
        "an answer to nothing",
        "a reason with an escape",
        "a publication of its own",
        "an ack of what was never sent",
        "more credit than there is",
    ],
)
async def test_what_it_must_not_say_ends_the_session_and_dials_nothing(
    hostile: bytes, dials: Dials, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    service = Service("ssh", HostPort("192.0.2.1", 22), 11111)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            relay = ScriptedRelay(nursery)
            nursery.start_soon(relay.serve)
            loop = AttachLoop(AgentConfig(), [service], dialer_for(relay.address), nursery)
            nursery.start_soon(loop.run)
            await until(lambda: len(relay.published) == 1)
            relay.now.session._outbox.queue_control(hostile)
            relay.now.flush()
            await until(lambda: events(caplog, "session-lost"))
            # And the agent comes again with a new one, as for any lost session.
            await until(lambda: len(relay.published) == 2)
            nursery.cancel_scope.cancel()
    assert dials == []
    told = "".join(str(one) for one in events(caplog))
    assert "\x1b" not in told
    assert "\n" not in told


async def test_a_flood_of_answers_keeps_one_timer_for_each_publication(
    caplog: pytest.LogCaptureFixture, jumping_clock: trio.testing.MockClock
) -> None:
    target = Target()
    async with serving(Service("ssh", target.address, 11111)) as (one, relay):
        nursery = one._nursery
        before = len(nursery.child_tasks)
        for _ in range(500):
            relay.now.session.refused(1, RefusalCode.NOT_GRANTED, "no")
            relay.now.session.published(1, 11111)
        relay.now.session.refused(1, RefusalCode.NOT_GRANTED, "no")
        relay.now.flush()
        await until(lambda: one._answers.get(1) == "no" and len(one._again) == 1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) <= before + 1
        await trio.sleep(REPUBLISH + 1)
        await until(lambda: len(relay.published) == 2)
    target.close()


async def test_visitors_that_it_opens_and_resets_at_once_hold_nothing(dials: Dials) -> None:
    async with serving(Service("ssh", HostPort("192.0.2.1", 22), 11111)) as (one, relay):
        for _ in range(300):
            relay.now.session.reset(relay.open(), ResetCode.ABORTED)
            relay.now.flush()
            await trio.lowlevel.checkpoint()
        await until(lambda: not one.endpoint.splices)
        assert one.endpoint.session.open_streams == 0
