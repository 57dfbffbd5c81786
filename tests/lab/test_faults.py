"""A user's shell and two copies, while the world around them fails.

Each test says what is promised about one fault. The line counter and both copies run all the time,
and whatever the fault, every line and every byte of them must arrive once and in order, unless the
fault is the death of a process; then they must be reset, and never end as if all had been said.

What happens is random only by the seed that each lab prints.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lab import faults
from tests.support.lab.network import (
    BOTH,
    IDENTIFICATION,
    ROUTER,
    SSH_PORT,
    VPS,
    VPS_SECOND,
    VPS_TO_LAPTOP,
    Lab,
    Way,
)
from tests.support.lab.traffic import Download, Traffic, traffic
from tests.support.lab.trial import Pace, Signs, Trial, new_login
from tests.support.waiting import eventually

# What is promised, in seconds.
NOTICED = 8.0
NOTICED_IDLE = 30.0
# Bytes a second in both directions together, with the headers of IP and TCP.
IDLE_BYTES = 20.0
# After a silence has ended. The path may have come back just after a SYN was lost in it, and the
# next is a second away; then both handshakes, and the queue that the copies build at once.
SILENCE_HEALED = 3.0
# After something told of the loss: a RST, or the kernel that the interface is back.
TOLD_HEALED = 2.0
ADDRESS_HEALED = 3.0
FREEZE_HEALED = 3.0
# After a goodbye: of the other side, and of those who were in the middle of something. It waits for
# what is in the kernel's queue and on the way, which is less than a second of either.
TOLD = 2.0
# What a visitor who comes while the link is away can hope for.
VISITOR_WAIT = 10.0
TAKE_BACK = 2.0
RELAY_BACK = 5.0
TAKEN_OVER = 5.0
# Less than one of the smallest replay budgets, which is what a leak would fill first.
MEMORY_SLACK = 128 * 1024
# One after the other; each leaves more than MEMORY_SLACK of a download in the agent's replay.
SESSIONS = 6
FILLED = 1 << 18
# Beyond the promise: a fault is measured also when it breaks the promise.
HOPELESS = 60.0

SIGNS = Signs(
    noticed=re.compile(r" (link-in-doubt|link-down|link-up|dial-failed)\b"),
    # Both sides tell of it, and the agent every time.
    lost=re.compile(r"^agent: .* link-down\b"),
)


class OurTrial(Trial[Lab]):
    user: Traffic | None = None  # while a fault is done to it

    def survive(self, fault: Callable[[], object], *, within: float) -> None:
        """Do `fault`, which returns when the world is whole again: nothing may be lost by it."""
        with traffic(self.lab) as user:
            self.user = user
            self.strike(fault)
            with new_login(self.lab) as login:
                again = user.lines.usable_again(since=self.whole, limit=HOPELESS)
                eventually(lambda: login.answered, what="a new login", limit=HOPELESS)
            time.sleep(self.pace.after)
            silence = user.lines.silence(since=self.struck)
            trip = user.lines.round_trip(since=self.struck, until=self.whole)
            user.finish()
        assert login.answered is not None
        self.write(
            login=login.answered - self.whole, shell=again, silence=silence, trip=trip, lost=0
        )
        assert again < within, f"usable again {again:.2f} s after the fault; promised: {within:g}"

    def promise_unbroken(self) -> None:
        """The fault must not have cost the link: it was none."""
        line = self.lab.journal.first("link-down", "link-in-doubt", since=self.struck)
        assert line is None, f"{line.at - self.struck:.2f} s into it: {line.who}: {line.text}"


@pytest.fixture
def trial(
    lab: Lab,
    pace: Pace,
    record_property: Callable[[str, object], None],
    request: pytest.FixtureRequest,
) -> OurTrial:
    name: str = request.node.name
    name = name.removeprefix("test_").replace("_", " ")
    return OurTrial(
        lab=lab, pace=pace, record=record_property, name=name, by="ssh-relay", signs=SIGNS
    )


# --- The path ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [BOTH, ("up",), ("down",)], ids=["both", "up", "down"])
@pytest.mark.lengths(short=[9], full=[5, 30, 120])
def test_black_hole(trial: OurTrial, ways: tuple[Way, ...], length: float) -> None:
    trial.survive(lambda: faults.black_hole(trial.lab, length, *ways), within=SILENCE_HEALED)
    noticed = trial.noticed()
    assert length < NOTICED or (noticed is not None and noticed < NOTICED), noticed


def test_middlebox_forgets_and_resets(trial: OurTrial) -> None:
    trial.survive(lambda: trial.lab.wan.forget_flows(answer="reset"), within=TOLD_HEALED)


def test_middlebox_forgets_in_silence(trial: OurTrial) -> None:
    """The path is whole, but for the flows there were."""
    trial.survive(lambda: trial.lab.wan.forget_flows(answer="silence"), within=NOTICED)


@pytest.mark.parametrize("percent", [1, 5, 20])
@pytest.mark.lengths(short=[6], full=[60])
def test_loss(trial: OurTrial, percent: int, length: float) -> None:
    """Slow, and nothing more. At 20 % TCP itself pauses for up to 9 s, and may lose its link."""
    trial.survive(
        lambda: faults.loss(trial.lab, length, percent=percent),
        within=SILENCE_HEALED if percent < 20 else HOPELESS,
    )
    if percent < 20:
        trial.promise_unbroken()


@pytest.mark.lengths(short=[10], full=[60])
def test_saturated_uplink(trial: OurTrial, length: float) -> None:
    """A full queue is no dead link."""
    trial.survive(lambda: faults.saturated_uplink(trial.lab, length), within=SILENCE_HEALED)
    trial.promise_unbroken()


@pytest.mark.lengths(short=[10], full=[60])
def test_cut_at_random(trial: OurTrial, length: float) -> None:
    trial.survive(lambda: faults.cuts(trial.lab, length), within=TOLD_HEALED)
    assert trial.links_lost() > 1


@pytest.mark.parametrize("ways", [BOTH, ("up",), ("down",)], ids=["both", "up", "down"])
def test_black_hole_while_idle(trial: OurTrial, ways: tuple[Way, ...]) -> None:
    """Nobody types: there is no hurry, but it must not go unnoticed."""
    time.sleep(trial.pace.before)  # what the start left to be acked is acked by then
    trial.struck = time.monotonic()
    trial.lab.wan.hole(*ways)
    agent = trial.lab.agent.process
    agent.wait_for_line("link-down", after=len(agent.log), limit=HOPELESS)
    trial.write()
    noticed = trial.noticed()
    assert noticed is not None
    assert noticed < NOTICED_IDLE


@pytest.mark.lengths(short=[22], full=[120])
def test_idle_traffic(trial: OurTrial, length: float) -> None:
    """What keeps an idle link alive must be affordable on a line that is paid by the megabyte."""
    time.sleep(trial.pace.before)
    trial.struck = time.monotonic()
    before = trial.lab.wan.statistics()
    time.sleep(length)
    after = trial.lab.wan.statistics()
    trial.write()
    trial.promise_unbroken()
    sent = sum(after[way]["taken_bytes"] - before[way]["taken_bytes"] for way in BOTH)
    packets = sum(after[way]["taken"] - before[way]["taken"] for way in BOTH)
    assert 0 < sent / length < IDLE_BYTES, f"{sent} bytes in {packets} packets"


# --- The router's network ------------------------------------------------------------------------


@pytest.mark.lengths(short=[4], full=[4, 30])
def test_interface_down_and_up(trial: OurTrial, length: float) -> None:
    trial.survive(lambda: faults.interface_down_and_up(trial.lab, length), within=TOLD_HEALED)


def test_address_changes(trial: OurTrial) -> None:
    trial.survive(trial.lab.change_router_address, within=ADDRESS_HEALED)


def test_address_changes_while_idle(trial: OurTrial) -> None:
    """The kernel tells of it; without, the next question would be up to 20 s away."""
    time.sleep(trial.pace.before)
    trial.struck = time.monotonic()
    trial.lab.change_router_address()
    agent = trial.lab.agent.process
    agent.wait_for_line("link-up", after=len(agent.log), limit=HOPELESS)
    again = time.monotonic() - trial.struck
    trial.write(login=again)
    told = trial.lab.journal.first("network-changed", since=trial.struck)
    assert told is not None
    assert again < ADDRESS_HEALED


def test_relay_moves_to_another_address(trial: OurTrial) -> None:
    """Its name is re-pointed, as by dynamic DNS."""
    lab = trial.lab

    def move() -> None:
        lab.names.addresses = dict.fromkeys(lab.names.addresses, VPS_SECOND)
        lab.vps.ip(
            f"route replace 198.51.100.0/24 dev {lab.wan.device} src {VPS_SECOND}",
            f"addr del {VPS}/32 dev {lab.wan.device}",
        )

    trial.survive(move, within=NOTICED + TOLD_HEALED)


def test_name_service_is_silent_during_a_redial(trial: OurTrial) -> None:
    def lose_link_and_names() -> None:
        trial.lab.names.silent = True
        trial.lab.wan.forget_flows(answer="reset")

    trial.survive(lose_link_and_names, within=SILENCE_HEALED)


# What a router's network does all day: the uplink's lease and a router advertisement are renewed,
# containers and radios come and go, and other networks get a route.
CHURN = (
    "addr change {address}/32 dev {uplink} valid_lft 3600 preferred_lft 1800",
    "addr add 2001:db8::2/64 dev {uplink} valid_lft 3600 preferred_lft 1800 nodad",
    "route replace 2001:db8:1::/48 dev {uplink} proto ra expires 1800",
    "addr replace 2001:db8::2/64 dev {uplink} valid_lft 3600 preferred_lft 1800 nodad",
    "link add other0 type veth peer name other1",
    "link set other0 up",
    "link set other1 up",
    "addr add 10.9.9.1/24 dev other0",
    "route add 10.8.0.0/16 via 10.9.9.2 dev other0",
    "link set other1 down",
    "link set other0 down",
    "link del other0",
    "addr del 2001:db8::2/64 dev {uplink}",
)


@pytest.mark.lengths(short=[3], full=[20])
def test_churn_of_what_is_not_the_way(trial: OurTrial, length: float) -> None:
    lab = trial.lab
    told = 0

    def churn() -> None:
        nonlocal told
        ends = time.monotonic() + length
        while time.monotonic() < ends:
            for command in CHURN:
                lab.router.ip(command.format(address=ROUTER, uplink=lab.wan.device))
                time.sleep(0.05)
            told += 1

    trial.survive(churn, within=1.0)
    trial.promise_unbroken()
    assert told > 1
    noise = lab.journal.first("network-changed", "link-in-doubt", since=trial.struck)
    assert noise is None, noise


# --- Visitors ------------------------------------------------------------------------------------


def test_visitors_wait_for_a_lost_link(trial: OurTrial) -> None:
    """Ten seconds, unread; then they are reset, and whoever came later is let in."""
    lab = trial.lab
    outcome: dict[str, tuple[float, bytes]] = {}

    def visit(who: str) -> None:
        came = time.monotonic()
        with lab.laptop.entered():
            visitor = socket.create_connection((VPS_TO_LAPTOP, SSH_PORT), HOPELESS)
        with visitor:
            try:
                visitor.sendall(IDENTIFICATION)
                heard = visitor.recv(8)
            except ConnectionResetError:
                heard = b"reset"
        outcome[who] = time.monotonic() - came, heard

    def outage() -> None:
        lab.wan.hole()
        # Answered before the hole, so that both sides know at once.
        lab.wan.forget_flows(answer="reset")
        lab.relay.process.wait_for_line("link-down", limit=HOPELESS)
        visitors = [threading.Thread(target=visit, args=(who,)) for who in ("early", "late")]
        visitors[0].start()
        time.sleep(VISITOR_WAIT - 1.0)
        visitors[1].start()
        visitors[0].join(HOPELESS)
        lab.wan.mend()
        visitors[1].join(HOPELESS)

    trial.survive(outage, within=SILENCE_HEALED)
    waited, heard = outcome["early"]
    assert heard == b"reset"
    assert VISITOR_WAIT - 0.5 < waited < VISITOR_WAIT + 1.0
    waited, heard = outcome["late"]
    assert heard == b"SSH-2.0-"
    assert waited < VISITOR_WAIT


# --- The processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["agent", "relay"])
@pytest.mark.lengths(short=[5], full=[60])
def test_frozen(trial: OurTrial, who: str, length: float) -> None:
    process = (trial.lab.agent if who == "agent" else trial.lab.relay).process

    def freeze() -> None:
        process.send(signal.SIGSTOP)
        time.sleep(length)
        process.send(signal.SIGCONT)

    trial.survive(freeze, within=FREEZE_HEALED)


def test_agent_is_killed_and_restarted(trial: OurTrial) -> None:
    kill_and_restart_agent(trial, within=TAKE_BACK)


def test_agent_is_killed_under_a_full_uplink(trial: OurTrial) -> None:
    """What waits in its kernel must not trickle on as if it lived: the next would be a duplicate.

    A second more, for what is in the queue on the way.
    """
    trial.lab.wan.shape("up", rate=1e6)
    kill_and_restart_agent(trial, within=TAKE_BACK + 1.0)


def kill_and_restart_agent(trial: OurTrial, *, within: float) -> None:
    lab = trial.lab
    with traffic(lab) as user:
        assert user.download is not None
        user.download.wait_for(FILLED)
        trial.struck = time.monotonic()
        lab.agent.process.kill()
        process = lab.start_agent()
        lab.wait_for_banner(limit=HOPELESS)
        again = time.monotonic() - process.started_at
        waited = waited_for_a_core(process.pid)
        user.assert_reset(limit=within)
        trial.write(login=again, shell="reset", lost=user.lost())
    # Starting Python is most of it, and what other labs took of the cores meanwhile is theirs.
    assert again - waited < within, f"{again:.2f} s, {waited:.2f} of them without a core"


def test_relay_is_killed_and_restarted(trial: OurTrial) -> None:
    lab = trial.lab
    with traffic(lab) as user:
        trial.struck = time.monotonic()
        lab.relay.process.kill()
        user.assert_reset(limit=RELAY_BACK)
        # Down for two seconds: long enough for the agent to have been refused.
        time.sleep(max(0.0, trial.struck + 2.0 - time.monotonic()))
        process = lab.start_relay()
        lab.wait_for_banner(limit=HOPELESS)
        again = time.monotonic() - process.started_at
        waited = waited_for_a_core(process.pid)
        trial.write(login=again, shell="reset", lost=user.lost())
    assert again - waited < RELAY_BACK, f"{again:.2f} s, {waited:.2f} of them without a core"


def test_relay_is_stopped_and_started(trial: OurTrial) -> None:
    """The agent is told, and at its first try after the start the port is back."""
    lab = trial.lab
    with traffic(lab) as user:
        trial.struck = time.monotonic()
        lab.relay.process.send(signal.SIGTERM)
        user.assert_reset(limit=TOLD)
        assert lab.relay.process.wait() == 0
        told = lab.journal.first("link-down", since=trial.struck, who="agent")
        process = lab.start_relay()
        lab.wait_for_banner(limit=HOPELESS)
        again = time.monotonic() - process.started_at
        waited = waited_for_a_core(process.pid)
        trial.write(login=again, shell="reset", lost=user.lost())
    assert told is not None
    assert told.at - trial.struck < TOLD
    assert again - waited < RELAY_BACK, f"{again:.2f} s, {waited:.2f} of them without a core"


@pytest.mark.parametrize("uplink", ["free", "full"])
def test_agent_is_stopped(trial: OurTrial, uplink: str) -> None:
    """It says so: what it carried is reset at once, and nobody waits for its return."""
    lab = trial.lab
    if uplink == "full":
        lab.wan.shape("up", rate=1e6)
    with traffic(lab) as user:
        assert user.download is not None
        user.download.wait_for(FILLED)
        trial.struck = time.monotonic()
        lab.agent.process.send(signal.SIGTERM)
        user.assert_reset(limit=TOLD)
        trial.write(shell="reset", lost=user.lost())
    told = lab.journal.first("link-down", since=trial.struck, who="relay")
    assert told is not None
    assert "the agent said goodbye" in told.text
    assert told.at - trial.struck < TOLD
    assert lab.agent.process.wait() == 0


def test_router_reboots_without_a_goodbye(trial: OurTrial) -> None:
    """The new instance is another one, and meets a relay that believes in the old link."""
    lab = trial.lab
    with traffic(lab) as user:
        trial.struck = time.monotonic()
        lab.wan.hole()
        lab.agent.process.kill()
        # Nothing that the router's kernel still has to say about the old link may get out later.
        lab.wan.forget_flows(answer="silence")
        lab.wan.mend()
        assert lab.journal.first("link-down", since=trial.struck, who="relay") is None
        process = lab.start_agent()
        lab.wait_for_banner(limit=HOPELESS)
        again = time.monotonic() - process.started_at
        waited = waited_for_a_core(process.pid)
        user.assert_reset(limit=TAKEN_OVER)
        trial.write(login=again, shell="reset", lost=user.lost())
    assert again - waited < TAKEN_OVER, f"{again:.2f} s, {waited:.2f} of them without a core"


# --- Outlasting what is kept ---------------------------------------------------------------------


@pytest.mark.configured(relay='detached_keep = "2s"\n', agent='detached_keep = "2s"\n')
def test_a_session_is_kept_too_long(trial: OurTrial) -> None:
    """Then both sides let go: whoever still waits at either end is told so by a reset."""
    lab = trial.lab
    with traffic(lab) as user:
        trial.struck = time.monotonic()
        lab.wan.hole()
        user.assert_reset(limit=2 * NOTICED)
        # Of the three at the router: the two that have something to send meet it at once.
        dropbear = lab.ssh_server.process
        dropbear.wait_for_line("Exit .root. .*([Rr]eset|[Bb]roken pipe)", limit=2 * NOTICED)
        lab.wan.mend()
        lab.wait_for_banner(limit=HOPELESS)
        trial.write(shell="reset", lost=user.lost())
    for who in ("relay", "agent"):
        assert lab.journal.first("session-expired", since=trial.struck, who=who)


@pytest.mark.configured(relay='detached_keep = "1s"\n', agent='detached_keep = "1s"\n')
def test_memory_of_a_session_that_is_over_is_returned(trial: OurTrial) -> None:
    """What it held for its replay: sessions that end the same way, one after the other, need no
    more than one.
    """
    lab = trial.lab
    resident: list[tuple[int, int]] = []
    for _ in range(SESSIONS):
        download = Download(lab)
        try:
            download.wait_for(FILLED)
            lab.wan.hole()
            lab.wan.forget_flows(answer="reset")  # so both sides know at once
            download.assert_reset(limit=2 * NOTICED)
        finally:
            download.kill()
        lab.wan.mend()
        lab.wait_for_banner(limit=HOPELESS)
        resident.append((memory(lab.relay.process.pid), memory(lab.agent.process.pid)))
    # The first filled what is kept for the next: the allocator's, and the pools of buffers. What
    # the others leave sways by half a megabyte; a leak of their replay would be all of FILLED each.
    for first, last in zip(resident[0], resident[-1], strict=True):
        assert last - first < (SESSIONS - 1) * FILLED * 3 // 4, resident


# What the kernels hold is beyond any budget, and is little beside what would come in this time.
@pytest.mark.configured(relay='replay = "256KiB"\n', agent='replay = "256KiB"\n')
@pytest.mark.lengths(short=[8], full=[60])
def test_replay_is_full_while_the_link_is_down(trial: OurTrial, length: float) -> None:
    """Back-pressure on both local sockets, memory flat, and everything is delivered after."""
    lab = trial.lab
    resident: list[tuple[int, int]] = []
    read: list[tuple[int, int]] = []

    def outlast() -> None:
        user = trial.user
        assert user is not None
        assert user.upload is not None
        assert user.download is not None
        lab.wan.hole()
        for share in (0.5, 0.5):
            time.sleep(share * length)
            resident.append((memory(lab.relay.process.pid), memory(lab.agent.process.pid)))
            read.append((user.upload.position, user.download.far_position))
        lab.wan.mend()

    trial.survive(outlast, within=SILENCE_HEALED)
    assert read[0] == read[1], "both local sockets stand still"
    (relay_then, agent_then), (relay, agent) = resident
    assert relay - relay_then < MEMORY_SLACK
    assert agent - agent_then < MEMORY_SLACK


def waited_for_a_core(pid: int) -> float:
    """For how many seconds the process could have run and did not get to."""
    _, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(waited) / 1e9


def memory(pid: int) -> int:
    """Resident, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# Routers without a clock boot in 1970. What is Python in the agent asks `time` for the hour.
WRONG_YEAR = "import time\nstart = time.monotonic()\ntime.time = lambda: time.monotonic() - start\n"


def test_the_clock_is_in_1970_and_names_are_silent(trial: OurTrial, tmp_path: Path) -> None:
    """As after a reboot whose uplink is not yet all there: no hour, no names."""
    lab = trial.lab
    (tmp_path / "sitecustomize.py").write_text(WRONG_YEAR)
    lab.agent.process.terminate()
    lab.agent.environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    process = lab.start_agent()
    process.wait_for_line("link-up")
    assert "1970-01-01" in process.log[0]

    def lose_link_and_names() -> None:
        lab.names.silent = True
        lab.wan.forget_flows(answer="reset")

    trial.survive(lose_link_and_names, within=SILENCE_HEALED)
