"""Many agents in one process, each with a key, a session and a link of its own.

    python -m tests.support.many_agents FILE FIRST LAST

plays those members of the fleet in FILE that are numbered from FIRST up to, not including, LAST:
each is the agent's own code, dialling, shaking hands and publishing a service as on a router of its
own. Says "ready" on stdout when all services are up, and stays until it is ended.
"""

from __future__ import annotations

import json
import logging
import resource
import secrets
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final, TypedDict

import trio

from protocol.process import logs
from protocol.process.address import HostPort
from protocol.process.state import StateFolder
from protocol.wire.identifiers import AgentKey, RelayKey, Token
from protocol.wire.noise import StaticKey
from relay_agent.config import AgentConfig
from relay_agent.identity.agent_keys import AgentKeys
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link.attach_loop import AttachLoop
from relay_agent.link.relay_dialer import RelayDialer
from relay_agent.services import publisher
from relay_agent.services.service import Service
from tests.support.ports import LOOPBACK

# Shaking hands at once. They all come from one address, and a relay lets 32 of one address do so;
# this is about agents that are there, not about how soon they are.
AT_ONCE: Final = 16


class Member(TypedDict):
    key: str  # private, in hexadecimal digits
    port: int  # public
    target: int  # port on this machine


class Fleet(TypedDict):
    relay: int  # port on this machine
    relay_key: str  # public, in hexadecimal digits
    members: list[Member]


def enrol(state: Path, relay: int, services: Sequence[tuple[int, int]]) -> Fleet:
    """Make agents known to the relay with that state folder, each with a public port and a target.

    The relay has run before, and may be running.
    """
    # Not needed, and so not wanted, in the process that plays the agents.
    from relay_server.registry.registry import Registry

    folder = StateFolder(state)
    relay_key = StaticKey.from_private(bytes.fromhex((state / "relay.key").read_text()))
    members = []
    with Registry(folder) as registry:
        for number, (port, target) in enumerate(services):
            key, token, now = StaticKey.generate(), Token(secrets.token_bytes(16)), time.time()
            registry.invite(
                f"agent-{number}",
                token,
                now=now,
                lifetime=60.0,
                port_range=range(0),
                ports=[port],
            )
            registry.redeem(token, AgentKey(key.public), now)
            members.append(Member(key=key.private.hex(), port=port, target=target))
    return Fleet(relay=relay, relay_key=relay_key.public.hex(), members=members)


async def play(fleet: Fleet, members: Sequence[Member]) -> None:
    relay = RelayIdentity(
        hosts=[HostPort(LOOPBACK, fleet["relay"])], key=RelayKey(bytes.fromhex(fleet["relay_key"]))
    )
    config = AgentConfig()
    news = Services()
    coming = iter(members)
    async with trio.open_nursery() as nursery:
        while some := list(islice(coming, AT_ONCE)):
            for member in some:
                service = Service("ssh", HostPort(LOOPBACK, member["target"]), member["port"])
                key = StaticKey.from_private(bytes.fromhex(member["key"]))
                dialer = RelayDialer(
                    AgentKeys(key), relay, save_relay=lambda _: None, save_keys=lambda _: None
                )
                loop = AttachLoop(config, [service], dialer, nursery)
                nursery.start_soon(loop.run)
            await news.wait_for(len(some))
        sys.stdout.write("ready\n")
        sys.stdout.flush()


class Services(logging.Handler):
    """Learns that a service is up as people do: from the log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._up = trio.Semaphore(0)
        log = logging.getLogger(publisher.__name__)
        log.setLevel(logging.INFO)
        log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "service-up":
            self._up.release()

    async def wait_for(self, count: int) -> None:
        for _ in range(count):
            await self._up.acquire()


def main() -> None:
    file, first, last = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    logs.configure("warning", "text")
    for output in logging.getLogger().handlers:
        output.setLevel(logging.WARNING)
    fleet: Fleet = json.loads(Path(file).read_text())
    trio.run(play, fleet, fleet["members"][int(first) : int(last)])


if __name__ == "__main__":
    main()
