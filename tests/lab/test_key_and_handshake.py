"""What somebody on the way, or with a copy of a key, can do to a link that is alive: nothing.

Played with real processes: the recorded bytes are those of the agent itself, and whoever shows a
key does so from the router's own network with the project's own handshake.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from protocol.errors import DenialCode, LinkDenied, LinkLost
from protocol.process.state import StateFolder
from protocol.transport.handshake import initiate
from protocol.transport.link import Link
from protocol.wire import frame as wire
from protocol.wire.frame import FrameType
from protocol.wire.hello import PREFACE_SIZE, Hello, Limits, Resume, Welcome
from protocol.wire.identifiers import InstanceId, SessionId, Token
from protocol.wire.invitation import Invitation
from protocol.wire.noise import StaticKey, Suite
from relay_agent.identity.enrolment import load_enrolment, load_key
from tests.support.lab.network import RELAY_PORT, VPS, Lab, LabAgent
from tests.support.lab.traffic import Traffic, traffic
from tests.support.lab.wan import parse_segment
from tests.support.processes import ProcessUnderTest
from tests.support.waiting import LIMIT, eventually

ETH_P_ALL = 3
SYN = 2
# The relay's question to the attached agent, and the time to come and go around it.
PROBED = 5.0
# Between tries of a process that was refused as a duplicate.
DUPLICATE_RETRY = 30.0


@pytest.fixture
def user(lab: Lab) -> Iterator[Traffic]:
    """A link in use. At the end everything must have arrived, and over this one link."""
    with traffic(lab) as user:
        began = time.monotonic()
        yield user
        user.finish()
    assert lab.journal.first("link-down", "link-in-doubt", since=began, who="agent") is None


# --- Bytes that were recorded --------------------------------------------------------------------


class Recording:
    """What the router sends to the relay, flow by flow, as anybody on the way sees it."""

    def __init__(self, lab: Lab) -> None:
        with lab.router.entered():
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)
            )
        self._socket.bind((lab.wan.device, ETH_P_ALL))
        self._socket.settimeout(0.05)
        self._flows: dict[int, tuple[int, dict[int, bytes]]] = {}  # by port: start, and pieces
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)
        self._thread.start()

    def _record(self) -> None:
        while not self._stopping.is_set():
            try:
                packet = self._socket.recv(2048)
            except TimeoutError:
                continue
            segment = parse_segment(packet)
            if segment is None or segment.destination_port != RELAY_PORT:
                continue
            if segment.flags & SYN:
                self._flows[segment.source_port] = segment.sequence + 1, {}
            elif segment.source_port in self._flows and segment.length:
                start, pieces = self._flows[segment.source_port]
                data = packet[len(packet) - segment.length :]
                pieces.setdefault((segment.sequence - start) % (1 << 32), data)

    def flow(self) -> bytes:
        """From its first byte on, without a gap, what the newest flow brought."""
        (_, pieces) = list(self._flows.values())[-1]
        data = b""
        for offset, piece in sorted(pieces.items()):
            if offset > len(data):
                break
            data += piece[len(data) - offset :]
        return data

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(LIMIT)
        self._socket.close()


@contextlib.contextmanager
def recording(lab: Lab) -> Iterator[Recording]:
    recording = Recording(lab)
    try:
        yield recording
    finally:
        recording.stop()


def handshake_of(flow: bytes) -> bytes:
    """The preface and messages 1 and 3 at its start; nothing while there is less."""
    end = PREFACE_SIZE
    for _ in range(2):
        if len(flow) < end + 2:
            return b""
        end += 2 + int.from_bytes(flow[end : end + 2], "big")
    assert flow.startswith(b"SRLY")
    return flow[:end] if len(flow) >= end else b""


def replay(lab: Lab, data: bytes) -> bytes:
    """Send `data` to the relay; what it answers until it closes."""
    answer = b""
    with lab.router.entered(), socket.create_connection((VPS, RELAY_PORT), LIMIT) as again:
        again.sendall(data)
        # It may reset us before all of that is read, which is an answer as good.
        with contextlib.suppress(ConnectionResetError):
            while piece := again.recv(4096):
                answer += piece
    return answer


def test_a_recorded_handshake_is_replayed(lab: Lab) -> None:
    agent = lab.agent.process
    with recording(lab) as seen:
        mark = len(agent.log)
        lab.wan.forget_flows(answer="reset")
        agent.send(signal.SIGUSR1)  # idle as the link is, only a question meets the loss at once
        agent.wait_for_line("link-up", after=mark)
        recorded = eventually(lambda: handshake_of(seen.flow()), what="a recorded handshake")
    relay = lab.relay.process
    with traffic(lab) as user:
        began = time.monotonic()
        for _ in range(3):
            mark = len(relay.log)
            # Message 2 and no more: message 3 answers another one, and nobody learns of any link.
            assert len(replay(lab, recorded)) == 2 + 48
            relay.wait_for_line("handshake-failed address=198.51.100.2 .*fail", after=mark)
        user.finish()
    assert lab.journal.first("link-down", "link-up", "link-in-doubt", since=began) is None


# --- Keys that were copied -----------------------------------------------------------------------


class Keyholder:
    """Shakes hands with the relay from the router's network, whoever's key it holds."""

    def __init__(self, lab: Lab, static: StaticKey) -> None:
        self._lab = lab
        self._static = static
        state = StateFolder(lab.agent.state)
        self.relay_key = load_enrolment(state).relay.key

    async def attach(
        self,
        *,
        instance: InstanceId,
        epoch: int = 1,
        resume: Resume | None = None,
        token: Token | None = None,
    ) -> tuple[Link, Welcome]:
        hello = Hello(
            instance=instance,
            epoch=epoch,
            software="copy",
            features=(),
            limits=Limits(streams=16, stream_window=1 << 18, session_window=1 << 20),
            resume=resume,
            token=token,
        )
        with self._lab.router.entered():
            sock = socket.create_connection((VPS, RELAY_PORT), LIMIT)
        sock.setblocking(False)
        try:
            with trio.fail_after(LIMIT):
                return await initiate(
                    sock,
                    suite=Suite.AESGCM,
                    static=self._static,
                    relay_key=self.relay_key,
                    hello=lambda: hello,
                )
        except BaseException:
            sock.close()
            raise

    async def denied(self, *, instance: InstanceId, resume: Resume | None = None) -> LinkDenied:
        with pytest.raises(LinkDenied) as told:
            await self.attach(instance=instance, resume=resume)
        return told.value


HOME = InstanceId(b"\1" * 16)
OFFICE = InstanceId(b"\2" * 16)
FOREIGN = Resume(session=SessionId(b"\3" * 16), received=0)


async def is_alive(link: Link) -> bool:
    """Whether the relay still answers on it."""
    try:
        await link.send_frame(wire.ping(0, 7))
        with trio.fail_after(LIMIT):
            while (await link.receive_frame())[0] != FrameType.PONG:
                pass
    except LinkLost:
        return False
    return True


async def test_a_session_of_others_is_not_resumed(lab: Lab, user: Traffic) -> None:
    # Another agent of this relay, who asks for what is not its own: it gets a session of its own.
    invitation = Invitation.decode(lab.relay.invite("office", 11112))
    office = Keyholder(lab, StaticKey.generate())
    link, welcome = await office.attach(instance=OFFICE, resume=FOREIGN, token=invitation.token)
    assert not welcome.resumed
    assert welcome.session != FOREIGN.session
    # With its own, live session's id, as one who copied that agent's key might learn it.
    home = Keyholder(lab, load_key(StateFolder(lab.agent.state)))
    for session in (welcome.session, FOREIGN.session):
        told = await home.denied(instance=HOME, resume=Resume(session=session, received=0))
        assert told.code == DenialCode.DUPLICATE
    assert await is_alive(link)
    link.close()


async def test_two_resumes_at_once(lab: Lab, user: Traffic) -> None:
    """As when an attempt that was given up arrives late: one of the two has the session then."""
    invitation = Invitation.decode(lab.relay.invite("office", 11112))
    office = Keyholder(lab, StaticKey.generate())
    link, welcome = await office.attach(instance=OFFICE, token=invitation.token)
    mine = Resume(session=welcome.session, received=0)
    for epoch in range(2, 7):
        # Equal ones, and one that is newer and must have it in whatever order they come.
        for epochs in ((2 * epoch, 2 * epoch), (2 * epoch, 2 * epoch + 1)):
            before, winners = link, []
            for at, one in await resume_all(office, mine, epochs):
                if await is_alive(one):
                    winners.append(at)
                    link = one
                else:
                    one.close()
            assert winners == [max(epochs)]
            assert not await is_alive(before)
            before.close()
    link.close()


async def resume_all(
    holder: Keyholder, mine: Resume, epochs: tuple[int, ...]
) -> list[tuple[int, Link]]:
    links: list[tuple[int, Link]] = []
    refusals: list[int] = []

    async def resume(epoch: int) -> None:
        try:
            link, welcome = await holder.attach(instance=OFFICE, epoch=epoch, resume=mine)
        except LinkDenied as told:
            refusals.append(told.code)
        except LinkLost:
            pass  # replaced before its welcome was on the way
        else:
            assert welcome.resumed
            links.append((epoch, link))

    async with trio.open_nursery() as nursery:
        for epoch in epochs:
            nursery.start_soon(resume, epoch)
    assert set(refusals) <= {DenialCode.SUPERSEDED}
    return links


@contextlib.contextmanager
def second_router(lab: Lab, folder: Path) -> Iterator[ProcessUnderTest]:
    """Its agent holds a copy of all that the first one has."""
    agent = LabAgent(folder, lab.router)
    # All but the socket of the one that runs, as any copy of the folder does.
    shutil.copytree(lab.agent.state, agent.state, ignore=shutil.ignore_patterns("*.sock"))
    try:
        yield lab.journal.watch("copy", agent.start())
    finally:
        agent.stop()


@pytest.mark.lengths(short=[3], full=[2 * DUPLICATE_RETRY + 5])
def test_a_copied_key_is_refused_and_named(
    lab: Lab, user: Traffic, tmp_path: Path, length: float
) -> None:
    relay = lab.relay.process
    with second_router(lab, tmp_path / "second") as copy:
        copy.wait_for_line(r"link-denied .*another process with the key of home", limit=PROBED)
        named = relay.wait_for_line(r"agent-duplicate agent=home address=(\S+) attached=(\S+)")
        assert re.match(r"198\.51\.100\.2:\d+$", named[2])
        time.sleep(length)
    assert lab.journal.count("link-up", who="copy") == 0


@pytest.mark.lengths(short=[3], full=[2 * DUPLICATE_RETRY + 5])
def test_two_with_one_key_never_alternate(lab: Lab, tmp_path: Path, length: float) -> None:
    """The copy comes while the first is silent, and has the port; then that one wakes up."""
    first = lab.agent.process
    with traffic(lab) as user:
        began = time.monotonic()
        first.send(signal.SIGSTOP)
        with second_router(lab, tmp_path / "second") as copy:
            copy.wait_for_line("service-up", limit=LIMIT)
            user.assert_reset(limit=PROBED)
            first.send(signal.SIGCONT)
            first.wait_for_line("link-denied .*another process with the key of home")
            time.sleep(length)
            lab.wait_for_banner(limit=PROBED)
    ups = lab.journal.count("link-up", since=began, who="relay")
    assert ups == 1, lab.journal.describe(since=began)
